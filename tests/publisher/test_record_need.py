"""A publish that changes nothing leaves no record, and gc must not be able to tell."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import UNRECORDED, PublishRecord
from nixcache_oci.maintenance.gc.roots import count_roots
from nixcache_oci.publisher.publish_plan import changes_nothing
from tests.maintenance.test_roots import DAY, RETENTION, publish
from tests.support.publish import CREATED

WEB = publish(0, "web=web-1", "db=db-1")
PUSH = publish(0, "web=web-1", scope="push/web")


@pytest.mark.parametrize(
    ("record", "recorded", "is_needless"),
    [
        pytest.param(publish(1, "db=db-1", "web=web-1"), [WEB], True, id="the same roots"),
        pytest.param(publish(0, "web=web-1", "db=db-1", run="2"), [WEB], True, id="in the same second"),
        pytest.param(publish(8.9, "web=web-1", "db=db-1"), [WEB], True, id="before a tenth of the ttl"),
        pytest.param(publish(9, "web=web-1", "db=db-1"), [WEB], False, id="the scope has to be kept open"),
        pytest.param(publish(1, "web=web-1", "db=db-1"), [], False, id="nothing was recorded"),
        pytest.param(publish(1, "web=web-1"), [PUSH], False, id="another scope"),
        pytest.param(publish(1, "web=web-2", "db=db-1"), [WEB], False, id="a new path"),
        pytest.param(publish(1, "web=web-1"), [WEB], False, id="an output is gone"),
        pytest.param(publish(1, "web=web-1", failed=("db",)), [WEB], False, id="it fails now"),
        pytest.param(
            publish(2, "web=web-1", failed=("db",)),
            [WEB, publish(1, "web=web-1", failed=("db",))],
            True,
            id="it fails still",
        ),
        pytest.param(
            publish(2, "web=web-1", "db=db-1"), [WEB, publish(1, "web=web-2")], False, id="there and back"
        ),
        pytest.param(
            publish(2, "web=web-1", "db=db-1"),
            [WEB, publish(1, "web=web-2", is_partial=True)],
            False,
            id="a narrowed run came between",
        ),
        pytest.param(publish(1, "web=web-1", is_partial=True), [WEB], True, id="narrowed, and the same"),
        pytest.param(publish(1, "web=web-2", is_partial=True), [WEB], False, id="narrowed, and another"),
        pytest.param(publish(1, failed=("web",), is_partial=True), [WEB], False, id="narrowed, and fails"),
        pytest.param(
            publish(2, "db=db-1", is_partial=True),
            [WEB, publish(1, "web=web-1")],
            False,
            id="narrowed, and gone meanwhile",
        ),
        pytest.param(publish(1, "web=web-1", scope="push/web"), [PUSH], True, id="a push again"),
        pytest.param(publish(1, "web=web-2", scope="push/web"), [PUSH], False, id="a push of another"),
        pytest.param(
            publish(1, "web=x86"),
            [publish(0, "web=x86", run="7"), publish(0.1, "web=x86", run="7")],
            False,
            id="several jobs of a run",
        ),
        pytest.param(
            publish(1, "web=web-1", scope="push/web"),
            [PUSH, publish(0, "web=web-2", scope="push/web", run="other")],
            False,
            id="two in the same second",
        ),
        pytest.param(publish(-1, "web=web-1", "db=db-1"), [WEB], False, id="another clock is ahead"),
    ],
)
def test_need(record: PublishRecord, recorded: list[PublishRecord], *, is_needless: bool) -> None:
    """The scope's newest word is the same, and young."""
    assert changes_nothing(record, recorded) is is_needless


publishes = st.lists(
    st.tuples(
        st.integers(1, 10),  # at the same second, the order of two is not known
        st.lists(st.sampled_from(["web=web-1", "web=web-2", "db=db-1"]), max_size=3, unique=True),
        st.sampled_from([(), ("web",), ("db",)]),
        st.booleans(),
        st.sampled_from(["main", "push/x"]),
    ),
    max_size=25,
)


@given(publishes, st.integers(0, 60), st.sampled_from([None, 1 * DAY, 20 * DAY, 90 * DAY]))
def test_what_is_skipped_changes_nothing_that_gc_keeps(
    history: list[tuple[int, list[str], tuple[str, ...], bool, str]], later: int, ttl: timedelta | None
) -> None:
    """Now and later, the same paths count; and where scopes end, none does so earlier than it would have."""
    everything: list[PublishRecord] = []
    written: list[PublishRecord] = []
    last: dict[str, timedelta] = {}
    day = 0
    for days, roots, failed, is_partial, scope in history:
        day += days
        run = str(len(everything))
        record = publish(day, *roots, run=run, scope=scope, failed=failed, is_partial=is_partial)
        everything.append(record)
        last[scope] = day * DAY
        if not changes_nothing(record, written):
            written.append(record)
        for passed in (0, later):
            at = CREATED + (day + passed) * DAY
            expected = count_roots(everything, Moment(at), retention=RETENTION, scope_ttl=None).paths
            assert count_roots(written, Moment(at), retention=RETENTION, scope_ttl=None).paths == expected
            if ttl is None:
                continue
            # What counts by the times of all publishes, to the day.
            is_open = {one for one, time in last.items() if at - CREATED - time < ttl}
            open_records = [one for one in everything if one.scope in is_open]
            needed = count_roots(open_records, Moment(at), retention=RETENTION, scope_ttl=None).paths
            assert needed <= count_roots(written, Moment(at), retention=RETENTION, scope_ttl=ttl).paths


def test_a_tenth_of_a_scopes_time_to_live() -> None:
    """So that a cache that nobody changes has ten records in that time, and not ninety."""
    assert UNRECORDED == 90 * DAY / 10
