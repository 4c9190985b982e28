"""Each option of the modules reaches what it is meant for, and what contradicts itself is refused."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

import pytest

from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.settings.proxy_config import proxy_config
from nixcache_oci.settings.repository_config import repository_config
from nixcache_oci.settings.values import Values
from nixcache_oci.settings.variables import (
    LOG_LEVEL,
    PROXY_VARIABLES,
    PUBLIC_KEYS,
    REPOSITORY_VARIABLES,
    UPLOAD_VARIABLES,
)
from tests.support.nix import NixSandbox
from tests.support.nix_modules import KEY, OTHER_KEY, STANDIN, TOP, USABLE, Modules, environment_of

pytestmark = pytest.mark.needs("nix-instantiate")


# Variables that have no option, and why.
WITHOUT_OPTION = {
    "GITHUB_TOKEN": "would be in the Nix store",
    "NIXCACHE_TOKEN": "would be in the Nix store",
    "GH_TOKEN": "would be in the Nix store",
    "NIXCACHE_TOKEN_FILE": "a credential of the service; see test_token",
    "NIXCACHE_UPSTREAM_FILE": "as above",
    "NIXCACHE_TLS_CERT": "as above",
    "NIXCACHE_TLS_KEY": "as above",
    "NIXCACHE_TLS_CLIENT_CA": "as above",
    "NIXCACHE_CACHES_FILE": "caches, each an option; see test_caches.py",
    "NIXCACHE_ON_DEMAND": "onDemand; unset by default, as it depends on who can connect",
    "NIXCACHE_INDEX_DIR": "systemd names its folder in CACHE_DIRECTORY",
    "NIXCACHE_STORE_DIR": "of a store elsewhere; extraSettings",
}


def nix_settings_without(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
@pytest.mark.parametrize(
    ("option", "value", "variable", "text"),
    [
        ("repo", "octocat/other", "NIXCACHE_REPO", "octocat/other"),
        ("registry", "registry.example:5000", "NIXCACHE_REGISTRY", "registry.example:5000"),
        ("image", "cache", "NIXCACHE_IMAGE", "cache"),
        ("onDemand", ["ghcr.io/a/*", "b.example/*"], "NIXCACHE_ON_DEMAND", "ghcr.io/a/* b.example/*"),
        ("onDemand", [], "NIXCACHE_ON_DEMAND", ""),
        ("port", 8080, "NIXCACHE_PORT", "8080"),
        ("listenAddress", "::", "NIXCACHE_LISTEN", "::"),
        (
            "upstreams",
            ["https://a.example/x%20y", "https://b"],
            "NIXCACHE_UPSTREAM",
            "https://a.example/x%20y https://b",
        ),
        ("upstreams", [], "NIXCACHE_UPSTREAM", ""),
        ("upstreamNars", "direct", "NIXCACHE_UPSTREAM_NARS", "direct"),
        ("ahead", False, "NIXCACHE_AHEAD", "no"),
        ("indexTtl", 60, "NIXCACHE_INDEX_TTL", "60"),
        ("packMemory", 64, "NIXCACHE_PACK_MEMORY", "64"),
        ("priority", 41, "NIXCACHE_PRIORITY", "41"),
        ("allowedHosts", ["cache.lan", "cache"], "NIXCACHE_HOSTS", "cache.lan cache"),
        ("publicKeys", [OTHER_KEY, KEY], "NIXCACHE_PUBLIC_KEYS", f"{OTHER_KEY} {KEY}"),
        ("logLevel", "debug", "NIXCACHE_LOG_LEVEL", "debug"),
        ("uploads", True, "NIXCACHE_UPLOADS", "1"),
        ("uploadQuiet", 9, "NIXCACHE_UPLOAD_QUIET", "9"),
        ("uploadSpace", "5G", "NIXCACHE_UPLOAD_SPACE", "5G"),
        ("uploadCertHeader", "X-Subject", "NIXCACHE_UPLOAD_CERT_HEADER", "X-Subject"),
        ("uploadSubjects", ["CN=a b,O=c", "CN=d-*"], "NIXCACHE_UPLOAD_SUBJECTS", "CN=a b,O=c;CN=d-*"),
        ("extraSettings", {"NIXCACHE_STORE_DIR": "/s"}, "NIXCACHE_STORE_DIR", "/s"),
        ("extraSettings", {"NUMBER": 3}, "NUMBER", "3"),
    ],
)
def test_options_reach_the_proxy(
    modules: Modules, kind: str, option: str, value: object, variable: str, text: str
) -> None:
    """What a user sets is what the proxy is told, in whatever way its service manager says it."""
    uploading = {"uploads": True, "uploadTokensFile": "/run/secrets/t"} if "upload" in option else {}
    certified = {"uploadSubjects": ["CN=a"], "uploadCertHeader": "X"} if "upload" in option else {}
    evaluated = modules.evaluate(kind, **{**USABLE, **uploading, **certified, option: value})
    assert evaluated.failed == []
    assert environment_of(evaluated, kind)[variable] == text


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
def test_defaults_are_those_of_the_program(modules: Modules, kind: str) -> None:
    """A machine with the module behaves as one where the program was started by hand."""
    environment = environment_of(modules.evaluate(kind, **USABLE), kind)
    own = {"NIXCACHE_REPO", "NIXCACHE_PUBLIC_KEYS"}
    for variable in (*PROXY_VARIABLES, *REPOSITORY_VARIABLES, LOG_LEVEL):
        if variable.name not in own and variable.name not in WITHOUT_OPTION:
            assert environment[variable.name] == variable.default, variable.name


@pytest.mark.parametrize("is_signed", ["true", "false"])
def test_what_documents_say_of_defaults(nix: NixSandbox, is_signed: str) -> None:
    """A default that is shown as an expression is one that Nix reads, and that gives the default."""
    given = f"""
      lib = import {STANDIN}/lib.nix;
      config.services.nixcache-proxy.requireSignatures = {is_signed};
    """
    shown = f"""let {given}
      pkgs = import {STANDIN}/pkgs.nix {{ inherit lib; system = "x86_64-linux"; }};
      inherit (import {TOP}/nix/options.nix {{ inherit lib pkgs config; }}) options;
      isShown = option: (option.defaultText._type or "") == "literalExpression";
    in map (option: {{ text = option.defaultText.text; inherit (option) default; }})
      (builtins.filter isShown (builtins.attrValues options.services.nixcache-proxy))"""
    options = _evaluate(nix, shown)
    assert options
    for option in options:
        assert _evaluate(nix, f"let {given} in {option['text']}") == option["default"]


def _evaluate(nix: NixSandbox, expression: str) -> Any:  # noqa: ANN401 -- JSON
    run = nix.run("nix-instantiate", "--eval", "--strict", "--json", "-E", expression).check()
    return json.loads(run.stdout)


def test_every_setting_has_an_option(modules: Modules) -> None:
    """A setting that the program learns later must not be forgotten here."""
    names = {variable.name for variable in (*PROXY_VARIABLES, *REPOSITORY_VARIABLES, LOG_LEVEL)}
    environment = environment_of(modules.evaluate(**USABLE), "nixos")
    assert environment.keys() == names - WITHOUT_OPTION.keys()


def test_uploads_have_a_folder_of_their_own(modules: Modules) -> None:
    """They outlive the cache folder, which anybody may empty; each setting has an option."""
    evaluated = modules.evaluate(
        **{**USABLE, "configureNix": False},
        **{name: f"/run/{name}" for name in ("uploadTokensFile", "signingKeyFile", "oidcFile")},
        **{name: f"/run/{name}" for name in ("tlsCertificate", "tlsKey", "tlsClientCA")},
        uploads=True,
        uploadSubjects=["CN=builder"],
        uploadCertHeader="X-Subject",
    )
    assert evaluated.failed == []
    for name in ("NIXCACHE_TLS_CERT", "NIXCACHE_TLS_KEY", "NIXCACHE_TLS_CLIENT_CA", "NIXCACHE_OIDC_FILE"):
        assert environment_of(evaluated, "nixos")[name].startswith("%d/")
    assert len(evaluated.service["serviceConfig"]["LoadCredential"]) == 6
    assert evaluated.service["serviceConfig"]["StateDirectory"] == "nixcache-proxy"
    assert "StateDirectory" not in modules.evaluate(**USABLE).service["serviceConfig"]
    names = {variable.name for variable in UPLOAD_VARIABLES}
    assert names - environment_of(evaluated, "nixos").keys() == {
        "NIXCACHE_UPLOAD_DIR",  # systemd names it in STATE_DIRECTORY
        "NIX_SIGNING_KEY",  # would be in the Nix store
        "NIXCACHE_MAX_LAYERS",  # of odd registries; extraSettings
        "NIXCACHE_MAX_BLOB_BYTES",
    }


def test_the_program_takes_what_the_module_says(modules: Modules) -> None:
    """The spelling of lists and numbers is one that the program's own parsers read."""
    evaluated = modules.evaluate(
        **USABLE,
        upstreams=["https://a.example", "https://b.example"],
        allowedHosts=["cache.lan"],
        indexTtl=60,
        listenAddress="::",
        extraSettings={"NIXCACHE_INDEX_DIR": "/var/cache/x"},
    )
    values = Values(environment_of(evaluated, "nixos"), argparse.Namespace())
    config = proxy_config(values)
    assert config.upstreams == ("https://a.example", "https://b.example")
    assert config.hosts == frozenset({"cache.lan"})
    assert [str(key) for key in values.get(PUBLIC_KEYS)] == [KEY]
    assert (config.listen, config.index_ttl_seconds) == ("::", 60.0)
    location = repository_config(values)
    assert isinstance(location, RegistryReference)
    assert location.host == "ghcr.io"


def test_a_server_for_others(modules: Modules) -> None:
    """A machine can serve a cache without using it; then it needs no key, and its Nix is left alone."""
    evaluated = modules.evaluate(
        repo="octocat/my-cache",
        configureNix=False,
        listenAddress="0.0.0.0",
        openFirewall=True,
        port=8080,
    )
    assert (evaluated.failed, evaluated.warnings) == ([], [])
    assert "http" not in str(nix_settings_without(evaluated.nix_settings, "substituters"))
    assert evaluated.nix_settings["substituters"] == ["https://cache.nixos.org/"]
    assert evaluated.config["networking"]["firewall"]["allowedTCPPorts"] == [8080]
    assert modules.evaluate(**USABLE).config["networking"]["firewall"]["allowedTCPPorts"] == []


def test_http_proxy_of_the_machine(modules: Modules) -> None:
    """Where the machine reaches the network through a proxy, so does the service; its own settings win."""
    more = '{ networking.proxy.envVars = { https_proxy = "http://p:1"; no_proxy = "a"; }; }'
    evaluated = modules.evaluate(**USABLE, more=more, extraSettings={"no_proxy": "b"})
    environment = environment_of(evaluated, "nixos")
    assert (environment["https_proxy"], environment["no_proxy"]) == ("http://p:1", "b")
    assert evaluated.warnings == []


def test_an_oci_layout(modules: Modules) -> None:
    """A folder is served without a repository's name, and may be in a home; else homes are hidden."""
    layout = modules.evaluate(registry="oci:/home/octocat/cache", publicKey=KEY)
    assert layout.failed == []
    assert layout.service["serviceConfig"]["ProtectHome"] == "read-only"
    assert "NIXCACHE_REPO" not in layout.service["environment"]
    assert modules.evaluate(**USABLE).service["serviceConfig"]["ProtectHome"] is True


def test_home_on_macos(modules: Modules) -> None:
    """There launchd runs the proxy, and no unit of systemd is written."""
    evaluated = modules.evaluate("home", **USABLE, system="aarch64-darwin")
    assert evaluated.config["systemd"]["user"] == {"services": {}, "sockets": {}}
    agent = evaluated.config["launchd"]["agents"]["nixcache-proxy"]
    assert agent["enable"]
    assert agent["config"]["ProgramArguments"][-1].endswith(f"exec {modules.package}/bin/nixcache-oci proxy")
    environment = agent["config"]["EnvironmentVariables"]
    assert environment["NIXCACHE_REPO"] == "octocat/my-cache"
    # launchd tells a program nothing of certificates; the file is nix-darwin's, or else macOS's own.
    daemon = modules.evaluate("darwin", **USABLE).config["launchd"]["daemons"]["nixcache-proxy"]
    assert environment["SSL_CERT_FILE"] == daemon["serviceConfig"]["EnvironmentVariables"]["SSL_CERT_FILE"]
    assert "SSL_CERT_FILE=/etc/ssl/cert.pem" in agent["config"]["ProgramArguments"][-1]
    mine = modules.evaluate(
        "home", **USABLE, system="aarch64-darwin", extraSettings={"SSL_CERT_FILE": "/mine.pem"}
    )
    agent = mine.config["launchd"]["agents"]["nixcache-proxy"]
    assert agent["config"]["EnvironmentVariables"]["SSL_CERT_FILE"] == "/mine.pem"
    assert modules.evaluate("home", **USABLE).config["launchd"]["agents"] == {}


def test_daemon_on_macos(modules: Modules) -> None:
    """It runs as a user of its own, who owns the folder of the index."""
    config = modules.evaluate("darwin", **USABLE, uid=600).config
    daemon = config["launchd"]["daemons"]["nixcache-proxy"]
    name = daemon["serviceConfig"]["UserName"]
    assert config["users"]["knownUsers"] == [name]
    user = config["users"]["users"][name]
    assert (user["uid"], user["gid"], config["users"]["groups"][name]["gid"]) == (600, 600, 600)
    environment = daemon["serviceConfig"]["EnvironmentVariables"]
    assert environment["NIXCACHE_INDEX_DIR"].startswith(user["home"] + "/")
    assert daemon["command"] == f"{modules.package}/bin/nixcache-oci proxy"


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"repo": None},
            "repo is not set: set it to owner/name, or services.nixcache-proxy.registry to oci:/path",
        ),
        ({"registry": "registry.example", "repo": None}, "repo is not set"),
        ({"registry": "oci:cache"}, "the folder behind `oci:` must be an absolute path"),
        ({"port": 0}, "port is 0, which picks a free one"),
        ({"publicKey": None}, "requireSignatures is on and services.nixcache-proxy.publicKeys is empty"),
        ({"publicKeys": ["my-cache-1:" + "C" * 42 + "A="]}, "two keys of one name"),
        ({"tokenFile": "/nix/store/abc-token"}, "tokenFile is in the Nix store"),
        ({"upstreamsFile": "/nix/store/abc-urls"}, "upstreamsFile is in the Nix store"),
        ({"uploadTokensFile": "/nix/store/abc-tokens"}, "uploadTokensFile is in the Nix store"),
        ({"signingKeyFile": "/nix/store/abc-key"}, "signingKeyFile is in the Nix store"),
        (
            {"tlsCertificate": "/c", "tlsKey": "/nix/store/abc-key", "configureNix": False},
            "tlsKey is in the Nix store",
        ),
        ({"uploads": True}, "nobody may upload"),
        ({"uploadSubjects": ["CN=a"]}, "set both, or none"),
        ({"uploadCertHeader": "X-Subject"}, "set both, or none"),
        ({"tlsCertificate": "/run/c"}, "are both needed for HTTPS"),
        ({"tlsClientCA": "/run/c", "uploadSubjects": ["CN=a"]}, "are both needed for HTTPS"),
        ({"tlsCertificate": "/run/c", "tlsKey": "/run/k"}, "for which no authority gives a certificate"),
        ({"extraSettings": {"NIXCACHE_PORT": "1"}}, "sets NIXCACHE_PORT, which has an option of its own"),
        (
            {"extraSettings": {"NIXCACHE_UPSTREAM_FILE": "/x"}},
            "sets NIXCACHE_UPSTREAM_FILE, which has an option",
        ),
    ],
)
def test_contradictions(modules: Modules, kind: str, settings: dict[str, Any], message: str) -> None:
    """What cannot be meant is refused before anything is built, by the options' names."""
    failed = modules.evaluate(kind, **{**USABLE, **settings}).failed
    assert len(failed) == 1
    assert message in failed[0]
    assert failed[0].startswith("services.nixcache-proxy.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"requireSignatures": False}, "remove one of them"),
        ({"openFirewall": True}, "openFirewall is on, but nobody else can reach 127.0.0.1"),
    ],
)
def test_contradictions_on_nixos(modules: Modules, settings: dict[str, Any], message: str) -> None:
    """As above, of what only a service of the machine has."""
    failed = modules.evaluate(**{**USABLE, **settings}).failed
    assert len(failed) == 1
    assert message in failed[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"publicKey": str(SecretKey.generate("k-1").render())},
        {"port": 70000},
        {"listenAddress": "localhost"},
        {"listenAddress": "[::1]"},
        {"logLevel": "loud"},
        {"upstreamNars": "both"},
        {"indexTtl": 0},
        {"packMemory": 63},
        {"tokenFile": "token"},
        {"uploadSpace": "much"},
        {"uploadSubjects": ["CN=a;CN=b"]},
        {"uploadCertHeader": "X Y"},
    ],
)
def test_values_of_a_wrong_kind(modules: Modules, settings: dict[str, Any]) -> None:
    """They are refused by the option's name, a secret key in a public one's place among them."""
    with pytest.raises(RuntimeError, match=f"option `services.nixcache-proxy.{next(iter(settings))}'"):
        modules.evaluate(**{**USABLE, **settings})


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
def test_the_program_is_in_path(modules: Modules, kind: str) -> None:
    """Whoever has the service can call `nixcache-oci doctor`, and publish."""
    config = modules.evaluate(kind, **USABLE).config
    installed = config["home"]["packages"] if kind == "home" else config["environment"]["systemPackages"]
    assert installed == [str(modules.package)]


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
def test_off_means_nothing(modules: Modules, kind: str) -> None:
    """A module that is imported and not enabled leaves the machine as it is."""
    evaluated = modules.evaluate(kind, enable=False, port=0)
    assert evaluated.failed == []
    assert "nixcache" not in str({**evaluated.config, "services": None})
    assert "37515" not in str(evaluated.nix_settings)
