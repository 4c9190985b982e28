"""Which pins count, and which records have to stay for that."""

from datetime import timedelta

import pytest

from nixcache_oci.cache.record import PinRecord, UnpinRecord
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.maintenance.gc.roots import PinningRecord, count_pins
from nixcache_oci.nix.store_path import StorePath
from tests.support.objects import hash_part_of
from tests.support.publish import CREATED

DAY = timedelta(days=1)


def pin(day: float, name: str, path: str, keep: str = "forever") -> PinRecord:
    return PinRecord(name, StorePath("/nix/store", hash_part_of(path), path), CREATED + day * DAY, keep)


def until(day: float) -> str:
    return f"until {format_time(CREATED + day * DAY)}"


def unpin(day: float, name: str) -> UnpinRecord:
    return UnpinRecord(name, CREATED + day * DAY)


def revisions(count: int, *paths: str) -> list[PinningRecord]:
    return [pin(day, "v", path, f"for {count} revisions") for day, path in enumerate(paths)]


@pytest.mark.parametrize(
    ("records", "day", "counting"),
    [
        pytest.param([pin(0, "v", "a")], 9999, {"a"}, id="for ever"),
        pytest.param([pin(0, "v", "a"), pin(1, "v", "b")], 9999, {"a", "b"}, id="for ever, each"),
        pytest.param([pin(0, "v", "a", until(5))], 4.9, {"a"}, id="until its date"),
        pytest.param([pin(0, "v", "a", until(5))], 5, set(), id="after its date"),
        pytest.param(revisions(2, "a", "b"), 9, {"a", "b"}, id="two revisions, both"),
        pytest.param(revisions(2, "a", "b", "c"), 9, {"b", "c"}, id="two revisions, the newest"),
        pytest.param(
            revisions(2, "a", "b", "b", "b"), 9, {"a", "b"}, id="the same path again is no revision"
        ),
        pytest.param(revisions(1, "a", "b", "a"), 9, {"a"}, id="there and back"),
        pytest.param([pin(0, "v", "a"), unpin(1, "v")], 9, set(), id="unpinned"),
        pytest.param([pin(0, "v", "a"), unpin(1, "w")], 9, {"a"}, id="another name unpinned"),
        pytest.param([pin(0, "v", "a"), unpin(1, "v"), pin(2, "v", "b")], 9, {"b"}, id="pinned anew"),
        pytest.param([pin(1, "v", "a"), unpin(1, "v")], 9, {"a"}, id="at the same second the pin stays"),
    ],
)
def test_counting(records: list[PinningRecord], day: float, counting: set[str]) -> None:
    """A pin counts until its date, its revisions, for ever, or until it is unpinned."""
    counted = count_pins(records, CREATED + day * DAY)
    assert {found.path.name for found in counted.pins} == counting


def test_what_ends_a_pin_stays_as_long_as_the_pin() -> None:
    """A pin that lies in a segment for ever must not count again because its end was forgotten."""
    old, end = pin(0, "v", "a"), unpin(1, "v")
    assert count_pins([old, end], CREATED + 9 * DAY).records == {end}
    assert count_pins([end], CREATED + 9 * DAY).records == set()
    displaced = revisions(1, "a", "b")
    assert count_pins(displaced, CREATED + 9 * DAY).records == {displaced[1]}
