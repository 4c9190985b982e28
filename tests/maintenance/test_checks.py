"""What the checks of doctor make of what they are told."""

from dataclasses import replace

import pytest

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.local_store.nix_settings import NixSettings, is_trusted
from nixcache_oci.clients.proxy_status import ProxyStatus, ServedCache
from nixcache_oci.errors import FormatError
from nixcache_oci.maintenance.checks.finding import Level
from nixcache_oci.maintenance.checks.key_match import check_public_keys, check_signing_keys
from nixcache_oci.maintenance.checks.nix_use import NixClient, _check_cache_info, _check_served, check_nix_use
from nixcache_oci.maintenance.checks.remote import check_clock, describe_token
from nixcache_oci.nix.signature import PublicKey, SecretKey

URL = "http://127.0.0.1:37515"
KEY = SecretKey.generate("check-1")
OTHER = SecretKey.generate("check-2")
NAMESAKE = SecretKey.generate("check-1")
PUBLIC = KEY.public_key

PLAIN = NixSettings(
    substituters=("https://cache.nixos.org/",),
    trusted_public_keys=(),
    trusted_substituters=(),
    trusted_users=("root",),
    fallback=False,
    substitute=True,
    require_sigs=True,
    store="auto",
)
RIGHT = replace(PLAIN, substituters=(URL,), trusted_public_keys=(str(PUBLIC),), fallback=True)


@pytest.mark.parametrize(
    ("ahead", "level"),
    [
        (None, Level.WARNING),
        (0.4, Level.GOOD),
        (-59, Level.GOOD),
        (61, Level.WARNING),
        (-299, Level.WARNING),
        (301, Level.ERROR),
        (-3600, Level.ERROR),
    ],
)
def test_clock(ahead: float | None, level: Level) -> None:
    """Seconds do not matter, minutes do, and more of them are wrong."""
    assert check_clock(ahead).level is level


@pytest.mark.parametrize(("ahead", "word"), [(400, "behind"), (-400, "ahead of")])
def test_clock_tells_the_direction(ahead: float, word: str) -> None:
    """It is our clock that is to be set."""
    assert f"400 s {word} the registry's" in check_clock(ahead).text


@pytest.mark.parametrize(
    ("recorded", "configured", "level"),
    [
        (None, (), Level.GOOD),
        ((), (), Level.GOOD),
        ((PUBLIC,), (), Level.GOOD),
        ((PUBLIC, OTHER.public_key), (PUBLIC,), Level.GOOD),
        ((OTHER.public_key,), (), Level.WARNING),
        ((NAMESAKE.public_key,), (), Level.ERROR),
        ((PUBLIC,), (OTHER.public_key,), Level.ERROR),
    ],
)
def test_signing_key(
    recorded: tuple[PublicKey, ...] | None, configured: tuple[PublicKey, ...], level: Level
) -> None:
    """One that clients do not know signs in vain; a new one beside a known one may be meant so."""
    (finding,) = check_signing_keys([KEY], recorded, configured)
    assert finding.level is level
    assert bool(finding.remedy) == (level is not Level.GOOD)


def test_no_signing_key() -> None:
    """A publisher needs one."""
    (finding,) = check_signing_keys([], None, ())
    assert finding.level is Level.ERROR


@pytest.mark.parametrize(
    ("configured", "recorded", "level"),
    [
        ((), None, Level.GOOD),
        ((PUBLIC,), None, Level.GOOD),
        ((PUBLIC,), (), Level.GOOD),
        ((PUBLIC,), (PUBLIC,), Level.GOOD),
        ((PUBLIC,), (NAMESAKE.public_key,), Level.ERROR),
    ],
)
def test_public_keys(
    configured: tuple[PublicKey, ...], recorded: tuple[PublicKey, ...] | None, level: Level
) -> None:
    """With none of the recorded keys, every look-up is a miss."""
    assert check_public_keys(configured, recorded).level is level


def client(own: NixSettings, system: NixSettings, *, is_daemon: bool, is_trusted: bool) -> NixClient:
    return NixClient(own, system, "bob", is_daemon=is_daemon, is_trusted=is_trusted, environment={})


GOOD, WARNING, ERROR = Level.GOOD, Level.WARNING, Level.ERROR


@pytest.mark.parametrize(
    ("own", "levels"),
    [
        (RIGHT, (GOOD, GOOD, GOOD)),
        (PLAIN, (ERROR, ERROR, WARNING)),
        (replace(RIGHT, substituters=("http://localhost:37515/",)), (GOOD, GOOD, GOOD)),
        (replace(RIGHT, substituters=("http://127.0.0.1:1",)), (ERROR, GOOD, GOOD)),
        (replace(RIGHT, substitute=False), (ERROR, GOOD, GOOD)),
        (replace(RIGHT, trusted_public_keys=(str(NAMESAKE.public_key),)), (GOOD, ERROR, GOOD)),
        (replace(RIGHT, trusted_public_keys=(), require_sigs=False), (GOOD, WARNING, GOOD)),
        (replace(RIGHT, trusted_public_keys=(), substituters=(f"{URL}?trusted=1",)), (GOOD, WARNING, GOOD)),
        (replace(RIGHT, substituters=("http://[",)), (ERROR, GOOD, GOOD)),
    ],
)
def test_nix_without_a_daemon(own: NixSettings, levels: tuple[Level, ...]) -> None:
    """The user's settings are all that counts."""
    nix = client(own, PLAIN, is_daemon=False, is_trusted=False)
    findings = check_nix_use(nix, URL, [str(PUBLIC)], is_configured=True)
    assert tuple(finding.level for finding in findings) == (*levels, GOOD)
    assert all(finding.remedy for finding in findings if finding.level is ERROR)


@pytest.mark.parametrize(
    ("system", "is_trusted", "levels"),
    [
        (PLAIN, True, (GOOD, GOOD, GOOD)),
        (PLAIN, False, (ERROR, ERROR, GOOD)),
        (replace(PLAIN, trusted_substituters=(URL,)), False, (GOOD, ERROR, GOOD)),
        (
            replace(PLAIN, trusted_substituters=(f"{URL}/",), trusted_public_keys=(str(PUBLIC),)),
            False,
            (GOOD, GOOD, GOOD),
        ),
        (RIGHT, False, (GOOD, GOOD, GOOD)),
    ],
)
def test_nix_with_a_daemon(system: NixSettings, levels: tuple[Level, ...], *, is_trusted: bool) -> None:
    """A daemon follows a user whom it trusts, and others only to where its own settings lead."""
    nix = client(RIGHT, system, is_daemon=True, is_trusted=is_trusted)
    findings = check_nix_use(nix, URL, [str(PUBLIC)], is_configured=True)
    assert tuple(finding.level for finding in findings) == (*levels, GOOD)
    assert all("trusted-users" in finding.remedy for finding in findings if finding.level is ERROR)


@pytest.mark.parametrize(("is_daemon", "level"), [(False, ERROR), (True, WARNING)])
def test_an_http_proxy_in_the_way(level: Level, *, is_daemon: bool) -> None:
    """Nix would ask it for the proxy of this machine; what is excepted already stays so by the remedy."""
    environment = {"http_proxy": "http://p:1", "NO_PROXY": "lan.example"}
    nix = replace(client(RIGHT, RIGHT, is_daemon=is_daemon, is_trusted=True), environment=environment)
    found = check_nix_use(nix, URL, [str(PUBLIC)], is_configured=True)[-1]
    assert found.level is level
    assert "http_proxy is set, and no_proxy does not have 127.0.0.1" in found.text
    assert "export no_proxy=lan.example,127.0.0.1" in found.remedy
    assert ("nix-daemon" in found.remedy) == is_daemon
    nix = replace(nix, environment={**environment, "no_proxy": "lan.example,127.0.0.1"})
    assert check_nix_use(nix, URL, [str(PUBLIC)], is_configured=True)[-1].level is GOOD


@pytest.mark.parametrize(
    ("is_daemon", "is_trusted", "before"),
    [(False, False, "run: "), (True, True, "run: "), (True, False, "as root: ")],
)
def test_who_is_to_change_nix_conf(before: str, *, is_daemon: bool, is_trusted: bool) -> None:
    """What a daemon would ignore in a user's own settings is for root to add."""
    nix = client(PLAIN, PLAIN, is_daemon=is_daemon, is_trusted=is_trusted)
    findings = check_nix_use(nix, URL, [str(PUBLIC)], is_configured=True)[:3]
    assert [finding.remedy for finding in findings] == [f"{before}nixcache-oci use --apply"] * 3


SERVED = ServedCache("oci:/cache", is_ready=True, error=None, is_key_changed=False)
SERVING = ProxyStatus((SERVED,), store_dir="/nix/store", priority=30)


@pytest.mark.parametrize(
    ("cache", "level"),
    [
        (SERVED, GOOD),
        (replace(SERVED, is_ready=False, error="refused"), ERROR),
        (replace(SERVED, error="refused"), WARNING),
        (replace(SERVED, is_key_changed=True), WARNING),
    ],
)
def test_what_a_proxy_serves(cache: ServedCache, level: Level) -> None:
    """Nothing at all is wrong; an older index, or a new key, is to be looked at; of each cache."""
    alone, other = ProxyStatus((cache,), "/nix/store", 30), replace(SERVED, registry="oci:/other")
    assert [one.level for one in _check_served(alone, ["oci:/cache"], is_chosen=True)] == [level]
    assert [one.level for one in _check_served(alone, [], is_chosen=False)] == [level]
    both = ProxyStatus((other, cache), "/nix/store", 30)
    found = _check_served(both, ["oci:/other", "oci:/cache"], is_chosen=True)
    assert [(one.check, one.level) for one in found] == [
        ("proxy: cache oci:/other", GOOD),
        ("proxy: cache oci:/cache", level),
    ]


def test_every_cache_has_to_be_served() -> None:
    """The settings here may name more than the proxy was started with, or others."""
    [missing] = _check_served(SERVING, ["oci:/cache", "oci:/more"], is_chosen=True)
    assert (missing.level, "it does not serve oci:/more" in missing.text) == (ERROR, True)
    [other] = _check_served(SERVING, ["oci:/other"], is_chosen=False)
    assert (other.level, "it serves oci:/cache, but" in other.text) == (WARNING, True)


@pytest.mark.parametrize(
    ("status", "level"),
    [
        (SERVING, GOOD),
        (replace(SERVING, priority=40), WARNING),
        (replace(SERVING, priority=None), WARNING),
        (replace(SERVING, store_dir="/other"), ERROR),
    ],
)
def test_nix_cache_info(status: ProxyStatus, level: Level) -> None:
    """Paths of another store are of no use; behind cache.nixos.org it works, slower."""
    assert _check_cache_info(status, "/nix/store").level is level


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"index": {}}', b'{"index": 1}'])
def test_a_status_of_something_else(document: bytes) -> None:
    """It is no proxy of ours."""
    with pytest.raises(FormatError, match="the proxy's status"):
        ProxyStatus.parse(document, "")


def test_the_key_is_not_known() -> None:
    """Then nothing can be said of it."""
    nix = client(RIGHT, RIGHT, is_daemon=False, is_trusted=True)
    assert check_nix_use(nix, URL, [], is_configured=False)[1].level is WARNING


@pytest.mark.parametrize("known", [PUBLIC, NAMESAKE.public_key])
def test_a_key_that_nobody_gave(known: PublicKey) -> None:
    """No remedy asks to trust what an unauthenticated listener names, nor to drop a key because of it."""
    own = replace(RIGHT, trusted_public_keys=(str(known),))
    nix = client(own, own, is_daemon=False, is_trusted=True)
    named = SecretKey.generate(known.name).public_key
    found = check_nix_use(nix, URL, [str(named)], is_configured=False)[1]
    assert found.level is ERROR
    assert "proves nothing" in found.text
    assert "remove" not in found.remedy
    assert str(named) not in found.remedy
    assert found.remedy.endswith("--public-key NAME:BASE64")


@pytest.mark.parametrize(
    ("trusted", "expected"),
    [(["root"], False), (["bob"], True), (["*"], True), (["@wheel"], True), (["@bob", "wheel"], False)],
)
def test_whom_a_daemon_trusts(trusted: list[str], *, expected: bool) -> None:
    """A user by name, or by group."""
    assert is_trusted("bob", {"wheel"}, trusted) == expected


@pytest.mark.parametrize(
    ("token", "word"),
    [("ghp_x", "classic"), ("github_pat_x", "fine-grained"), ("ghs_x", "workflow"), ("x", "credentials")],
)
def test_the_kind_of_a_token(token: str, word: str) -> None:
    """Told by what it begins with; the rest is not shown."""
    shown = describe_token(Credentials("me", f"{token}SECRET", "GITHUB_TOKEN"))
    assert word in shown
    assert "GITHUB_TOKEN" in shown
    assert "SECRET" not in shown
