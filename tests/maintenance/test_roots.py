"""Which roots and pins count, and which records have to stay for that."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.keepers import PinningRecord, count_pins
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import PinRecord, PublishRecord, UnpinRecord
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.maintenance.gc.roots import count_roots
from nixcache_oci.nix.store_path import StorePath
from tests.support.objects import hash_part_of
from tests.support.publish import CREATED

DAY = timedelta(days=1)
RETENTION = 30 * DAY


def path(name: str) -> StorePath:
    return StorePath("/nix/store", hash_part_of(name), name)


def publish(
    day: float,
    *roots: str,
    run: str = "",
    scope: str = "main",
    failed: tuple[str, ...] = (),
    is_partial: bool = False,
) -> PublishRecord:
    """Publish at a day; ``web=web-1`` builds the path web-1 for the root web."""
    named = tuple((name, path(built)) for name, built in (root.split("=") for root in roots))
    return PublishRecord(scope, run or str(day), CREATED + day * DAY, named, failed, is_partial)


def count(records: list[PublishRecord], day: float, ttl_days: int | None = None) -> set[str]:
    ttl = None if ttl_days is None else ttl_days * DAY
    counted = count_roots(records, Moment(CREATED + day * DAY), retention=RETENTION, scope_ttl=ttl)
    return {found.name for found in counted.paths}


WEB1, WEB2 = publish(0, "web=web-1"), publish(10, "web=web-2")


@pytest.mark.parametrize(
    ("records", "day", "counting"),
    [
        pytest.param([], 0, set(), id="nothing"),
        pytest.param([WEB1], 500, {"web-1"}, id="the newest counts as long as its scope is open"),
        pytest.param([WEB1, WEB2], 39.9, {"web-1", "web-2"}, id="superseded, in the retention"),
        pytest.param([WEB1, WEB2], 40, {"web-2"}, id="superseded, after the retention"),
        pytest.param([WEB2, WEB1], 40, {"web-2"}, id="order does not matter"),
        pytest.param([WEB1, publish(10, "db=db-1")], 40, {"db-1"}, id="an output that is gone"),
        pytest.param(
            [WEB1, publish(10, "db=db-1", failed=("web",))],
            400,
            {"web-1", "db-1"},
            id="failed keeps the last good",
        ),
        pytest.param(
            [WEB1, WEB2, publish(20, failed=("web",))], 400, {"web-2"}, id="failed keeps only the last good"
        ),
        pytest.param(
            [WEB1, *(publish(day, failed=("web",)) for day in range(1, 60))],
            60,
            {"web-1"},
            id="failing for weeks",
        ),
        pytest.param(
            [WEB1, publish(5), publish(80, failed=("web",))],
            90,
            {"web-1"},
            id="gone, then listed as failed again",
        ),
        pytest.param(
            [WEB1, publish(5, failed=("web",)), publish(10)], 41, set(), id="failed first, then gone for good"
        ),
        pytest.param(
            [WEB1, publish(10, "db=db-1", is_partial=True)],
            400,
            {"web-1", "db-1"},
            id="narrowed: other names stay",
        ),
        pytest.param(
            [WEB1, publish(10, "web=web-2", is_partial=True)], 40, {"web-2"}, id="narrowed: its own names go"
        ),
        pytest.param(
            [publish(0, "a=a-1", "b=b-1", scope="push/a"), publish(9, "a=a-2", scope="push/a")],
            400,
            {"a-2", "b-1"},
            id="a push displaces its own names only",
        ),
        pytest.param(
            [WEB1, publish(10, "web=web-2", scope="dev")], 400, {"web-1", "web-2"}, id="scopes are apart"
        ),
        pytest.param(
            [publish(0, "web=out", "web=dev"), publish(1, "web=out-2", "web=dev-2")],
            400,
            {"out-2", "dev-2"},
            id="the outputs of a root count together",
        ),
        pytest.param(
            [publish(0, "web=web-1", run="7"), publish(0.1, "db=db-1", run="7"), publish(-9, "db=db-0")],
            400,
            {"web-1", "db-1"},
            id="jobs of one run make one run",
        ),
        pytest.param(
            [publish(0, "web=x86", run="7"), publish(0.1, "web=arm", run="7")],
            400,
            {"x86", "arm"},
            id="jobs of one run do not displace each other's",
        ),
        pytest.param(
            [publish(0, "web=w-1", run="7"), publish(0.5, "web=w-2", "db=d-2", run="8"), publish(1, run="7")],
            400,
            {"w-2", "d-2"},
            id="a run that began earlier displaces nothing newer",
        ),
        pytest.param(
            [WEB1, WEB2, publish(20, "web=web-1")],
            39,
            {"web-1", "web-2"},
            id="there and back: both in the retention",
        ),
        pytest.param([WEB1, WEB2, publish(20, "web=web-1")], 51, {"web-1"}, id="there and back"),
        pytest.param(
            [publish(0, "web=web-1", run="a"), publish(0, "web=web-2", run="b")],
            400,
            {"web-1", "web-2"},
            id="at the same second nobody is newer",
        ),
    ],
)
def test_counting(records: list[PublishRecord], day: float, counting: set[str]) -> None:
    """The newest built path of each name counts, and an older one until 30 days after it was superseded."""
    assert count(records, day) == counting


@pytest.mark.parametrize(
    ("ttl_days", "day", "counting"),
    [(90, 108.9, {"web-2"}), (90, 109, set()), (None, 5000, {"web-2"})],
)
def test_a_scope_expires(ttl_days: int | None, day: float, counting: set[str]) -> None:
    """A scope ends its time to live after its last publish, which may have left no record for nine days."""
    assert count([WEB1, WEB2], day, ttl_days) == counting


@given(
    st.lists(
        st.builds(
            publish,
            st.integers(0, 120),
            st.sampled_from(["web=web-1", "web=web-2", "db=db-1"]),
            run=st.sampled_from(["", "7", "8"]),
            failed=st.sampled_from([(), ("web",), ("db",)]),
            is_partial=st.booleans(),
        ),
        max_size=12,
    ),
    st.integers(0, 200),
    st.integers(0, 100),
)
def test_what_is_not_needed_changes_nothing(records: list[PublishRecord], day: int, later: int) -> None:
    """Merging drops records: no root may stop counting for that, now or at any later time."""
    now = CREATED + day * DAY
    kept = count_roots(records, Moment(now), retention=RETENTION, scope_ttl=None).records
    assert count(list(kept), day) == count(records, day)
    assert count(list(kept), day + later) == count(records, day + later)


def pin(day: float, name: str, built: str, keep: str = "forever") -> PinRecord:
    return PinRecord(name, path(built), CREATED + day * DAY, keep)


def until(day: float) -> str:
    return f"until {format_time(CREATED + day * DAY)}"


def unpin(day: float, name: str) -> UnpinRecord:
    return UnpinRecord(name, CREATED + day * DAY)


def revisions(most: int, *paths: str) -> list[PinningRecord]:
    return [pin(day, "v", built, f"for {most} revisions") for day, built in enumerate(paths)]


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
def test_counting_pins(records: list[PinningRecord], day: float, counting: set[str]) -> None:
    """A pin counts until its date, its revisions, for ever, or until it is unpinned."""
    counted = count_pins(records, Moment(CREATED + day * DAY))
    assert {found.path.name for found in counted.pins} == counting


def test_what_ends_a_pin_stays_as_long_as_the_pin() -> None:
    """A pin that lies in a segment for ever must not count again because its end was forgotten."""
    old, end = pin(0, "v", "a"), unpin(1, "v")
    assert count_pins([old, end], Moment(CREATED + 9 * DAY)).records == {end}
    assert count_pins([end], Moment(CREATED + 9 * DAY)).records == set()
    displaced = revisions(1, "a", "b")
    assert count_pins(displaced, Moment(CREATED + 9 * DAY)).records == {displaced[1]}
