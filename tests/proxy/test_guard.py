"""Who may ask: names that a stranger can choose are refused."""

import pytest

from nixcache_oci.proxy.guard import is_allowed_host, is_from_elsewhere, may_change_state, own_names

NAMES = frozenset({"builder.lan", "thismachine"})


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:37515", "LOCALHOST.", "localhost:", "127.0.0.1.", "[::ffff:127.0.0.1]"),
        *("cache.localhost:1", "127.0.0.1", "127.0.0.1:37515", "[::1]:37515", "[fe80::1]"),
        *("192.168.1.20:37515", "builder.lan:37515", "Builder.LAN", "thismachine"),
    ],
)
def test_our_own_names_are_answered(host: str) -> None:
    """Loopback, IP addresses, configured names."""
    assert is_allowed_host(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "evil.example:37515", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("evil.example@127.0.0.1", "127.0.0.1/evil", "127.0.0.1:port", "0x7f.1", "2130706433", "127.1"),
        *("0177.0.0.1", "127.0.0.01", "\uff11\uff12\uff17.0.0.1", "[fe80::1%25eth0]", "[]", ".", ":80"),
        *("localhost:123456", "localhost\n", "::1", "[::1", "[evil.example]", "localhost, evil.example"),
        *(" localhost", "xlocalhost"),
    ],
)
def test_names_that_a_stranger_can_choose_are_refused(host: str) -> None:
    """A page that rebinds its name to this machine still sends its own name."""
    assert not is_allowed_host(host, NAMES)


def test_a_page_cannot_change_anything() -> None:
    """Browsers send Origin with a POST; the header that lets it through needs leave that nobody gives."""
    assert may_change_state(None, None)
    assert not may_change_state("http://evil.example", None)
    assert not may_change_state("null", None)
    assert may_change_state("http://localhost", "1")


@pytest.mark.parametrize(
    ("host_name", "names"),
    [
        ("Builder.lan.", {"builder.lan", "builder", "builder.local"}),
        ("builder", {"builder", "builder.local"}),
        ("", set()),
        (".", set()),
    ],
)
def test_the_machine_knows_its_own_names(host_name: str, names: set[str]) -> None:
    """With and without domain, and by multicast DNS; a machine without a name has none."""
    assert own_names(host_name) == names


@pytest.mark.parametrize(
    ("sites", "origins", "allow"),
    [
        (["cross-site"], [], None),
        (["same-site"], [], None),
        (["CROSS-SITE"], [], None),
        ([""], [], None),
        (["same-origin", "cross-site"], [], None),
        (["cross-site"], [], "1"),
        ([], ["null"], None),
        ([], ["http://evil.example"], None),
        ([], ["http://localhost"], None),
        ([], ["http://localhost:80", "http://localhost:37515"], None),
        ([], [""], None),
        (["same-origin"], ["http://localhost:37515.evil.example"], None),
    ],
)
def test_pages_of_other_sites_are_refused(sites: list[str], origins: list[str], allow: str | None) -> None:
    """Whatever they send; another port of this machine is another site as well."""
    assert is_from_elsewhere(sites, origins, "localhost:37515", allow)


@pytest.mark.parametrize(
    ("sites", "origins", "allow"),
    [
        ([], [], None),
        (["none"], [], None),
        (["same-origin"], [], None),
        (["Same-Origin "], ["http://LOCALHOST:37515"], None),
        ([], ["https://localhost:37515"], None),
        ([], ["http://evil.example"], "1"),
    ],
)
def test_other_clients_are_not(sites: list[str], origins: list[str], allow: str | None) -> None:
    """Who typed the address, and who is no browser, or sends the header that no page can."""
    assert not is_from_elsewhere(sites, origins, "localhost:37515", allow)
