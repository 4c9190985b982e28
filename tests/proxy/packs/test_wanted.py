"""Which ranges of a pack are fetched for the NARs whose narinfos were served."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, MAX_PACKED_NAR_BYTES
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.packs.wanted import (
    MAX_GAP_BYTES,
    MAX_RANGE_BYTES,
    Extent,
    Wanted,
    WantedList,
    ranges_of,
)

PACK = Digest.of(b"pack")

_PARTS = st.lists(
    st.tuples(st.integers(0, MAX_PACK_BYTES), st.integers(1, MAX_PACKED_NAR_BYTES)).map(
        lambda part: (part[0], part[0] + part[1])
    ),
    max_size=100,
)


@pytest.mark.parametrize(
    ("parts", "ranges"),
    [
        ([], []),
        ([(5, 9)], [(5, 9)]),
        ([(9, 12), (0, 4)], [(0, 12)]),
        ([(0, 4), (4 + MAX_GAP_BYTES, 5 + MAX_GAP_BYTES)], [(0, 5 + MAX_GAP_BYTES)]),
        ([(0, 4), (5 + MAX_GAP_BYTES, 6 + MAX_GAP_BYTES)], [(0, 4), (5 + MAX_GAP_BYTES, 6 + MAX_GAP_BYTES)]),
    ],
)
def test_small_gaps_are_fetched_too(parts: list[Extent], ranges: list[Extent]) -> None:
    """A request costs more than what lies between; of a large gap, nothing is fetched."""
    assert ranges_of(parts) == ranges


def test_a_pack_that_is_wanted_whole_comes_in_a_few_ranges() -> None:
    """At the same time, each of many NARs."""
    size = 50_000
    ranges = ranges_of((start, start + size) for start in range(0, 200 * size, size))
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 200 * size
    assert all(one[1] == other[0] for one, other in pairwise(ranges))
    assert len(ranges) == 3


@given(parts=_PARTS)
def test_each_part_lies_in_one_range(parts: list[Extent]) -> None:
    """Whatever a table says of them, and none is long; so it is for one more that a client asks for."""
    ranges = ranges_of(parts)
    for start, end in parts:
        assert any(first <= start and end <= behind for first, behind in ranges)
    assert all(behind - first <= MAX_RANGE_BYTES for first, behind in ranges)
    for start, end in parts[:3]:
        first, behind = Wanted(PACK, None, 0.0, parts=dict.fromkeys(parts[1:])).range_of((start, end))
        assert first <= start
        assert end <= behind


def test_what_is_fetched_is_wanted_no_longer() -> None:
    """The list counts NARs, and is empty when the last one was fetched."""
    wanted, waiting = Wanted(PACK, None, 0.0), WantedList()
    waiting.add(wanted)
    for part in ((0, 10), (20, 30), (0, 10), (50, 60)):
        waiting.add_part(wanted, part)
    assert len(waiting) == 3
    waiting.drop_parts(wanted, (0, 30))
    assert (len(waiting), list(wanted.parts)) == (1, [(50, 60)])
    waiting.drop_parts(wanted, (50, 60))
    assert (len(waiting), list(waiting)) == (0, [])
