"""Whom a machine with the modules trusts: never whoever takes a port, and no secret where all can read it."""

from typing import Any

import pytest

from tests.support.nix_modules import UNSIGNED, USABLE, Modules, environment_of

pytestmark = pytest.mark.needs("nix-instantiate")


def test_without_signatures_only_the_proxy_is_trusted(modules: Modules) -> None:
    """No setting for every cache is touched, no upstream slips in unchecked, and the user is told."""
    evaluated = modules.evaluate(**UNSIGNED)
    assert evaluated.failed == []
    assert evaluated.nix_settings["substituters"][0] == "http://127.0.0.1:37515?trusted=true"
    assert "require-sigs" not in evaluated.nix_settings
    environment = environment_of(evaluated, "nixos")
    assert (environment["NIXCACHE_PUBLIC_KEYS"], environment["NIXCACHE_UPSTREAM"]) == ("", "")
    registry, users = evaluated.warnings
    assert "requireSignatures is off: Nix takes whatever" in registry
    assert "any local user can do the same who listens on port 37515" in users
    for more in ({"upstreams": ["https://cache.nixos.org"]}, {"upstreamsFile": "/run/secrets/u"}):
        assert "upstreams are passed on without a check" in modules.evaluate(**UNSIGNED, **more).warnings[2]
    assert modules.evaluate(**USABLE).warnings == []


def test_only_root_listens_on_a_low_port(modules: Modules) -> None:
    """There no other user can take the proxy's place, and nothing is said of them."""
    (only,) = modules.evaluate(**UNSIGNED, port=375).warnings
    assert "whatever services.nixcache-proxy.registry sends" in only


@pytest.mark.parametrize(
    ("kind", "system"),
    [("darwin", "aarch64-darwin"), ("home", "aarch64-darwin"), ("home", "x86_64-linux")],
)
def test_unsigned_needs_a_port_that_is_held(modules: Modules, kind: str, system: str) -> None:
    """Where the port is free at times, any user could hand Nix programs; a Nix that is left alone cannot."""
    (failed,) = modules.evaluate(kind, **UNSIGNED, system=system).failed
    assert failed.startswith("services.nixcache-proxy.requireSignatures is off, and nothing holds port 37515")
    assert modules.evaluate(kind, **UNSIGNED, system=system, configureNix=False).failed == []


@pytest.mark.parametrize(
    ("address", "is_refused"), [("192.168.1.5", True), ("fd00::5", True), ("0.0.0.0", False)]
)
def test_unsigned_stays_on_this_machine(modules: Modules, address: str, *, is_refused: bool) -> None:
    """An address of the network may become another machine's, which Nix would trust then."""
    failed = modules.evaluate(**UNSIGNED, listenAddress=address).failed
    assert [address in one for one in failed] == [True] * is_refused


@pytest.mark.parametrize(
    ("option", "name", "variable"),
    [
        ("tokenFile", "token", "NIXCACHE_TOKEN_FILE"),
        ("upstreamsFile", "upstreams", "NIXCACHE_UPSTREAM_FILE"),
        ("uploadTokensFile", "upload-tokens", "NIXCACHE_UPLOAD_TOKENS_FILE"),
        ("signingKeyFile", "signing-key", "NIXCACHE_SIGNING_KEY_FILE"),
        ("oidcFile", "oidc", "NIXCACHE_OIDC_FILE"),
        ("tlsKey", "tls-key", "NIXCACHE_TLS_KEY"),
    ],
)
def test_files_with_secrets(modules: Modules, option: str, name: str, variable: str) -> None:
    """A secret stays in its file: systemd hands it over, and elsewhere only its path is told."""
    path = "/run/secrets/100%"
    service = modules.evaluate(**USABLE, **{option: path}).service
    assert service["serviceConfig"]["LoadCredential"] == [f"{name}:/run/secrets/100%%"]
    assert service["environment"][variable] == f"%d/{name}"
    for kind in ("darwin", "home"):
        environment = environment_of(modules.evaluate(kind, **USABLE, **{option: path}), kind)
        assert environment[variable] == path
    assert modules.evaluate(**USABLE).service["serviceConfig"]["LoadCredential"] == []


SECRETS = [
    ({"upstreams": ["https://a.example", "https://user:hunter2@b.example"]}, "upstreams", "upstreamsFile"),
    ({"upstreams": ["https://hunter2@b.example/cache"]}, "upstreams", "upstreamsFile"),
    ({"upstreams": ["https://b.example/github_pat_" + "x" * 30]}, "upstreams", "upstreamsFile"),
    ({"registry": "user:hunter2@registry.example"}, "registry", "tokenFile"),
    ({"registry": "https://hunter2@registry.example:5000"}, "registry", "tokenFile"),
    ({"repo": "https://hunter2@github.com/octocat/my-cache"}, "repo", "tokenFile"),
    ({"allowedHosts": ["hunter2@cache.lan"]}, "allowedHosts", "tokenFile"),
    *(
        ({"extraSettings": {name: value}}, "extraSettings", "tokenFile")
        for name, value in {
            "GITHUB_TOKEN": "hunter2",
            "GH_TOKEN": "hunter2",
            "NIX_SIGNING_KEY": "hunter2",
            "AWS_SECRET_ACCESS_KEY": "hunter2",
            "some_password": "hunter2",
            "DOCKER_AUTH_CONFIG": "{}",
            "HTTPS_PROXY": "http://user:hunter2@proxy.example:3128",
            "all_proxy": "user:hunter2@proxy.example",
            "http_proxy": "http://hunter2@proxy.example",
            "ANYTHING": "ghp_" + "a" * 36,
            "ANYTHING_ELSE": "my-cache-1:" + "A" * 86 + "==",
        }.items()
    ),
]


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
@pytest.mark.parametrize(("settings", "option", "instead"), SECRETS)
def test_secrets_are_no_options(
    modules: Modules, kind: str, settings: dict[str, Any], option: str, instead: str
) -> None:
    """Every user can read a unit and the Nix store: a password there is refused, and the message has none."""
    (failed,) = modules.evaluate(kind, **{**USABLE, **settings}).failed
    assert failed.startswith(f"services.nixcache-proxy.{option} ")
    assert "every user could read in the Nix store" in failed
    assert f"services.nixcache-proxy.{instead}" in failed
    assert "hunter2" not in failed


@pytest.mark.parametrize(
    "settings",
    [
        {"registry": "oci:/srv/a@b:c@d"},
        {"publicKey": "me@host-1:" + "A" * 43 + "="},
        {"extraSettings": {"HTTPS_PROXY": "http://proxy.example:3128", "LC_ALL": "de_DE@euro"}},
        {"extraSettings": {"DOCKER_CONFIG": "/etc/docker", "SOME_TOKEN_FILE": "/run/secrets/t"}},
        {"upstreams": ["https://cache.example/a%40b"]},
    ],
)
def test_what_is_no_secret(modules: Modules, settings: dict[str, Any]) -> None:
    """Addresses, paths and names that only look a little like one are left alone."""
    assert modules.evaluate(**{**USABLE, **settings}).failed == []


def test_a_password_of_the_machine(modules: Modules) -> None:
    """What NixOS itself writes where all can read it, the unit has as well, and that is said."""
    more = '{ networking.proxy.envVars = { https_proxy = "http://user:hunter2@p:1"; no_proxy = "a"; }; }'
    (warned,) = modules.evaluate(**USABLE, more=more).warnings
    assert "networking.proxy sets https_proxy with a password" in warned
    assert "hunter2" not in warned
