"""A cache that is published to and collected for long stays small, and never loses what counts."""

import os
from dataclasses import replace
from datetime import timedelta

import pytest

from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from tests.maintenance.simulated_year import Shape, Year

DAY = timedelta(days=1)
SHORT = Shape(
    days=24,
    options=GcOptions(retention=3 * DAY, scope_ttl=9 * DAY, grace=3 * DAY),
    longest_failure_days=6,
)


SOAK = pytest.mark.skipif(
    not os.environ.get("NIXCACHE_SOAK"), reason="takes minutes: set NIXCACHE_SOAK=1, or bench.year"
)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(SHORT, id="short"),
        pytest.param(replace(SHORT, pushes_a_day=50), id="short, with 50 pushes a day", marks=SOAK),
        pytest.param(Shape(), id="year", marks=SOAK),
    ],
)
async def test_the_cache_converges(shape: Shape) -> None:
    """Every step is checked by ``Wanted``; the cache's size and the number of its segments settle."""
    figures = await Year(shape).run()
    assert figures.publishes > 3 * shape.days
    assert figures.largest_refresh < 100_000
    good = [month.good_segments for month in figures.months]
    assert max(good) < 50
    assert figures.most_unmerged <= 40
    sizes = [month.stored_bytes for month in figures.months]
    assert max(sizes[-3:]) < 1.3 * max(sizes[-7:-3])
