"""What the modules tell Nix: where the cache is, beside all that is configured; and what is in between."""

import json

import pytest

from tests.support.nix import NixSandbox
from tests.support.nix_modules import KEY, OTHER_KEY, USABLE, Evaluated, Modules

pytestmark = pytest.mark.needs("nix-instantiate")


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("127.0.0.1", "http://127.0.0.1:37515"),
        ("0.0.0.0", "http://127.0.0.1:37515"),
        ("::", "http://[::1]:37515"),
        ("fd00::5", "http://[fd00::5]:37515"),
        ("192.168.1.5", "http://192.168.1.5:37515"),
    ],
)
def test_nix_asks_where_the_proxy_listens(modules: Modules, address: str, asked: str) -> None:
    """Nix is told an address that a client can use, and its other caches stay."""
    settings = modules.evaluate(**USABLE, listenAddress=address).nix_settings
    assert settings["substituters"] == [asked, "https://cache.nixos.org/"]
    assert settings["trusted-substituters"] == [asked]
    assert settings["trusted-public-keys"][-1] == KEY
    assert settings["trusted-public-keys"][0].startswith("cache.nixos.org-1:")


def home_nix_conf(evaluated: Evaluated) -> str:
    """Write nix.conf as home-manager does: settings sorted by name, then ``extraOptions``."""
    lines = []
    for name, value in sorted(evaluated.nix_settings.items()):
        words = value if isinstance(value, list) else [json.dumps(value)]
        lines.append(f"{name} = {' '.join(words)}\n")
    return "".join(lines) + str(evaluated.config["nix"]["extraOptions"])


@pytest.mark.parametrize(
    "own",
    [
        "{ }",
        '{ nix.settings.substituters = [ "https://own.example" ]; }',
        '{ nix.settings.extra-substituters = [ "https://own.example" ]; }',
        '{ nix.extraOptions = "substituters = https://own.example"; }',
        f'{{ nix.settings.trusted-public-keys = [ "{OTHER_KEY}" ]; }}',
    ],
)
def test_home_adds_to_the_users_nix_conf(modules: Modules, nix: NixSandbox, own: str) -> None:
    """Whatever a user lists, in whatever way, Nix ends up with that and with the cache."""
    evaluated = modules.evaluate("home", **USABLE, more=own)
    conf = f"experimental-features = nix-command\n{home_nix_conf(evaluated)}"
    environment = {**nix.environment(), "NIX_CONFIG": conf}
    run = nix.run("nix", "show-config", "--json", environment=environment).check()
    found = {name: one["value"] for name, one in json.loads(run.stdout).items()}
    assert "http://127.0.0.1:37515" in found["substituters"]
    assert KEY in found["trusted-public-keys"]
    assert ("https://own.example" in found["substituters"]) == ("own.example" in own)
    assert (OTHER_KEY in found["trusted-public-keys"]) == (OTHER_KEY in own)
    assert (found["fallback"], found["narinfo-cache-negative-ttl"]) == (True, 300)


def test_home_needs_a_nix_to_write_for(modules: Modules) -> None:
    """home-manager writes no nix.conf without one, and none where Nix is left alone."""
    assert modules.evaluate("home", **USABLE).config["nix"]["package"] == "nix"
    silent = modules.evaluate("home", **USABLE, configureNix=False).config["nix"]
    assert (silent["settings"], silent["extraOptions"], silent["package"]) == ({}, "", None)


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
def test_nix_that_is_managed_elsewhere(modules: Modules, kind: str) -> None:
    """With `nix.enable = false`, as with Determinate Nix, the lines to add are said; on wish, nothing is."""
    off = "{ nix.enable = false; }"
    (warned,) = modules.evaluate(kind, **USABLE, more=off).warnings
    assert "nix.enable is off" in warned
    assert ("nix.custom.conf" in warned) == (kind != "home")
    for line in (
        "extra-substituters = http://127.0.0.1:37515",
        f"extra-trusted-public-keys = {KEY}",
        "fallback = true",
        "narinfo-cache-negative-ttl = 300",
    ):
        assert line in warned.splitlines()
    assert modules.evaluate(kind, **USABLE, more=off, configureNix=False).warnings == []


# Where each kind of machine says with which variables Nix is started.
NIX_VARIABLES = {
    "nixos": ["networking.proxy.envVars", "nix.envVars", "environment.variables"],
    "darwin": [
        "launchd.daemons.nix-daemon.serviceConfig.EnvironmentVariables",
        "environment.variables",
    ],
    "home": ["home.sessionVariables"],
}


@pytest.mark.parametrize(
    ("kind", "option"), [(kind, option) for kind, options in NIX_VARIABLES.items() for option in options]
)
def test_an_http_proxy_before_nix(modules: Modules, kind: str, option: str) -> None:
    """Nix would ask it for the address of the cache's proxy, wherever the variable is set."""
    more = f'{{ {option} = {{ http_proxy = "http://p:1"; no_proxy = "lan.example"; }}; }}'
    (warned,) = modules.evaluate(kind, **USABLE, more=more).warnings
    assert "an HTTP proxy is set for Nix" in warned
    assert "no_proxy does not have 127.0.0.1" in warned
    assert modules.evaluate(kind, **USABLE, more=more, configureNix=False).warnings == []


@pytest.mark.parametrize(
    ("address", "variables", "is_covered"),
    [
        ("127.0.0.1", {"http_proxy": "p"}, False),
        ("127.0.0.1", {"all_proxy": "p"}, False),
        ("127.0.0.1", {"ALL_PROXY": "p"}, False),
        ("127.0.0.1", {"HTTP_PROXY": "p"}, True),
        ("127.0.0.1", {"https_proxy": "p"}, True),
        ("127.0.0.1", {"http_proxy": ""}, True),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "localhost"}, False),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "localhost,127.0.0.1"}, True),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "localhost 127.0.0.1"}, True),
        ("127.0.0.1", {"http_proxy": "p", "NO_PROXY": "127.0.0.1"}, True),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "10.0.0.1", "NO_PROXY": "127.0.0.1"}, False),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "*"}, True),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "127.0.0.0/8"}, True),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "10.0.0.0/8"}, False),
        ("127.0.0.1", {"http_proxy": "p", "no_proxy": "127.0.0.0/99, ::/0"}, False),
        ("::1", {"http_proxy": "p", "no_proxy": "127.0.0.1"}, False),
        ("::1", {"http_proxy": "p", "no_proxy": "::1"}, True),
        ("192.168.1.5", {"http_proxy": "p", "no_proxy": "127.0.0.1"}, False),
        ("192.168.1.5", {"http_proxy": "p", "no_proxy": "192.168.0.0/16"}, True),
        ("0.0.0.0", {"http_proxy": "p", "no_proxy": "127.0.0.1"}, True),
    ],
)
def test_what_no_proxy_covers(
    modules: Modules, address: str, variables: dict[str, str], *, is_covered: bool
) -> None:
    """It is read as libcurl does, with which Nix downloads, for the very address that Nix is given."""
    more = (
        "{ networking.proxy.envVars = { " + "".join(f'{k} = "{v}"; ' for k, v in variables.items()) + "}; }"
    )
    evaluated = modules.evaluate(**USABLE, listenAddress=address, more=more)
    assert evaluated.failed == []
    assert (evaluated.warnings == []) == is_covered


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
def test_settings_for_all_caches(modules: Modules, kind: str) -> None:
    """Falling back and remembering misses are on, can be left out, and give way to the user's own word."""
    manners = ("fallback", "narinfo-cache-negative-ttl")
    settings = modules.evaluate(kind, **USABLE).nix_settings
    assert [settings[name] for name in manners] == [True, 300]
    assert modules.evaluate(kind, **USABLE, narinfoCacheNegativeTtl=5).nix_settings[manners[1]] == 5
    without = modules.evaluate(kind, **USABLE, fallback=False, narinfoCacheNegativeTtl=None).nix_settings
    assert without == {name: value for name, value in settings.items() if name not in manners}
    told = modules.evaluate(kind, **USABLE, more="{ nix.settings.fallback = false; }").nix_settings
    assert told["fallback"] is False
