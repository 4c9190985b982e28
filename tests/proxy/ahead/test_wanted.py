"""What may be fetched ahead of which client, and in which order."""

from dataclasses import replace

import pytest

from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.ahead import wanted
from nixcache_oci.proxy.ahead.wanted import (
    ACTIVE_SECONDS,
    FIRST_UNREAD,
    KEPT_SECONDS,
    MAX_NAR_BYTES,
    MOST_CLIENTS,
    MOST_REFERENCES,
    MOST_WANTED,
    UpstreamNar,
    WantedNars,
)
from tests.support.objects import store_object

KEY = "0123456789abcdef"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def nar(name: str, *references: str, key: str = KEY) -> UpstreamNar:
    return UpstreamNar(
        f"upstream/{key}/nar/{name}.nar", Digest.of(name.encode()), 9, f"{'0' * 32}-{name}", references
    )


def all_of(wanted: WantedNars, key: str = KEY) -> list[str]:
    """Take all that may be fetched, and have it used."""
    taken = []
    while (found := wanted.next(key)) is not None:
        wanted.take(*found)
        wanted.note_used(found[0])
        taken.append(found[1].base_name.partition("-")[2])
    return taken


def upstreams_narinfo(url: str = f"upstream/{KEY}/nar/x.nar", **changes: object) -> NarInfo:
    return replace(store_object("x").narinfo, url=url, **changes)  # type: ignore[arg-type]  # of any field


@pytest.mark.parametrize(
    ("narinfo", "is_wanted"),
    [
        (upstreams_narinfo(), True),  # uncompressed: NarHash tells what comes
        (upstreams_narinfo(compression="xz"), False),  # nothing does
        (upstreams_narinfo(compression="xz", file_size=9), False),
        (upstreams_narinfo(compression="xz", file_hash=store_object("x").narinfo.nar_hash), False),
        (upstreams_narinfo(nar_size=MAX_NAR_BYTES), True),
        (upstreams_narinfo(nar_size=MAX_NAR_BYTES + 1), False),
        (upstreams_narinfo("https://elsewhere.example/x.nar"), False),
    ],
)
def test_only_small_nars_that_can_be_verified(narinfo: NarInfo, is_wanted: bool) -> None:
    """And that come through this proxy at all."""
    assert (UpstreamNar.of(narinfo) is not None) == is_wanted


def test_path_and_query_are_those_of_the_upstream() -> None:
    """As on the wire."""
    known = UpstreamNar.of(upstreams_narinfo(f"upstream/{KEY}/mac-00/nar/x%20y.nar?hash=1"))
    assert known is not None
    assert (known.key, *known.path_and_query) == (KEY, "mac-00/nar/x%20y.nar", "hash=1")


def test_references_come_first_and_names_decide() -> None:
    """It is the order in which Nix asks."""
    wanted = WantedNars(Clock())
    for one in (nar("root", nar("b").base_name, nar("c").base_name), nar("c"), nar("b", nar("d").base_name)):
        wanted.give("client", one)
    wanted.give("client", nar("d"))
    wanted.ask("client", "another")
    assert all_of(wanted) == ["c", "d", "b", "root"]


def test_a_burst_of_2000_narinfos_wants_nothing() -> None:
    """Until the client asks for a NAR."""
    wanted = WantedNars(Clock())
    for number in range(2000):
        wanted.give("client", nar(f"n{number}"))
    assert not wanted.upstreams()
    assert wanted.next(KEY) is None


def test_what_was_asked_for_is_wanted_no_more() -> None:
    """Nor is what another client was given, before that asks for a NAR itself."""
    wanted = WantedNars(Clock())
    for client in ("a", "b"):
        wanted.give(client, nar("x"))
        wanted.give(client, nar("y"))
    assert wanted.ask("a", nar("x").url) == nar("x")
    assert wanted.ask("a", nar("x").url) is None
    assert all_of(wanted) == ["y"]
    assert wanted.ask("b", "another") is None
    assert all_of(wanted) == ["x", "y"]


def test_clients_take_turns() -> None:
    """One with much does not hold up one with little."""
    wanted = WantedNars(Clock())
    for number in range(10):
        wanted.give("much", nar(f"m{number}"))
    wanted.give("little", nar("l"))
    wanted.ask("much", "another")
    wanted.ask("little", "another")
    assert "l" in all_of(wanted)[:2]


def test_each_upstream_has_its_own_queue() -> None:
    """One that may not be asked does not hold up the others."""
    wanted = WantedNars(Clock())
    wanted.give("client", nar("a"))
    wanted.give("client", nar("b", nar("a").base_name, key="f" * 16))
    wanted.ask("client", "another")
    assert all_of(wanted, "f" * 16) == ["b"]
    assert wanted.upstreams() == [KEY]


def test_a_client_that_uses_nothing_gets_little() -> None:
    """Two more for each that it uses."""
    wanted = WantedNars(Clock())
    for number in range(4 * FIRST_UNREAD):
        wanted.give("client", nar(f"n{number}"))
    wanted.ask("client", "another")

    def take_all() -> int:
        count = 0
        while (found := wanted.next(KEY)) is not None:
            wanted.take(*found)
            count += 1
        return count

    assert take_all() == FIRST_UNREAD
    wanted.note_used("client")
    assert take_all() == 3
    assert take_all() == 0


def test_a_client_that_went_away_gets_nothing() -> None:
    """A substitution that was killed costs what was on its way."""
    clock = Clock()
    wanted = WantedNars(clock)
    wanted.give("client", nar("x"))
    wanted.ask("client", "another")
    clock.now += ACTIVE_SECONDS
    assert not wanted.upstreams()
    assert wanted.next(KEY) is None
    wanted.ask("client", "another")
    assert all_of(wanted) == ["x"]


def test_narinfos_are_forgotten_after_minutes() -> None:
    """Whether a NAR was asked for since, or not; and so are clients."""
    clock = Clock()
    wanted = WantedNars(clock)
    wanted.give("client", nar("old"))
    clock.now += KEPT_SECONDS / 2
    wanted.give("client", nar("new"))
    clock.now += KEPT_SECONDS / 2 + 1
    wanted.expire()
    wanted.ask("client", "another")
    assert all_of(wanted) == ["new"]
    clock.now += KEPT_SECONDS + 1
    wanted.expire()
    assert not wanted._clients


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest is forgotten, and references of the newest do not count."""
    monkeypatch.setattr(wanted, "MOST_WANTED", MOST_WANTED // 64)
    monkeypatch.setattr(wanted, "MOST_REFERENCES", MOST_REFERENCES // 64)
    most = WantedNars(Clock())
    references = tuple(f"r{number}" for number in range(100))
    for number in range(2 * MOST_WANTED // 64):
        most.give("client", nar(f"n{number}", *references))
    held = [one for client in most._clients.values() for one in client.given.values()]
    assert len(held) == MOST_WANTED // 64
    assert sum(len(one.references) for one in held) <= MOST_REFERENCES // 64
    assert held[-1].base_name.endswith(f"-n{2 * MOST_WANTED // 64 - 1}")


def test_clients_are_bounded() -> None:
    """What the oldest was given is forgotten with it."""
    wanted = WantedNars(Clock())
    for number in range(2 * MOST_CLIENTS):
        wanted.give(f"client {number}", nar("x"))
        wanted.ask(f"client {number}", "another")
    assert len(wanted._clients) == len(wanted._since) == MOST_CLIENTS
