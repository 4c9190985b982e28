"""When a batch is due."""

import pytest

from nixcache_oci.queue.pace import MAX_WAIT, Pace, wait_after


@pytest.mark.parametrize(
    ("first", "last", "paths", "now", "is_due"),
    [
        (0, 0, 1, 2.9, False),
        (0, 0, 1, 3, True),
        (0, 59, 1, 59.5, False),
        (0, 59, 1, 60, True),
        (0, 0, 1000, 0, True),
    ],
)
def test_a_batch_is_due(first: float, last: float, paths: int, now: float, *, is_due: bool) -> None:
    """After some quiet; but a build that never pauses is published now and then, and no batch is too big."""
    assert Pace().is_due(first, last, paths, now) == is_due


def test_waits_double_up_to_a_limit() -> None:
    """A registry that is down for a night is asked again soon after it is back, and never in a burst."""
    assert [wait_after(failures) for failures in (1, 2, 3, 10)] == [1, 2, 4, 512]
    assert {wait_after(failures) for failures in (11, 100, 10**6)} == {MAX_WAIT}
