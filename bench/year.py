"""A year of publishes and collections: what the cache weighs then, and what a reader downloads.

Every step is checked by an independent oracle; a path that is missing ends the run with an error. The counts
are the same on every machine.
"""

import asyncio

from bench.figures import Series
from bench.scenario import OURS, Bench, Measurement
from tests.maintenance.simulated_year import Shape, Year

TITLE = "a year of publishes and collections"


def run(bench: Bench) -> None:
    """Simulate it once: there is nothing in it that varies."""
    bench.compare({OURS: lambda: _simulate(30 if bench.is_quick else 365)}, rounds=1)


def _simulate(days: int) -> Measurement:
    figures = asyncio.run(Year(Shape(days=days, seed=1)).run())
    values: dict[Series, float] = {
        Series("publishes", "publishes", better="higher"): figures.publishes,
        Series("collections", "collections"): figures.collections,
        Series("paths", "paths", better="higher"): figures.paths,
        Series("largest refresh", "bytes"): figures.largest_refresh,
    }
    for month in figures.months:
        for name, value in month._asdict().items():
            if name != "day":
                what, _, unit = name.rpartition("_")
                values[Series(what.replace("_", " "), unit, at=month.day, axis="days")] = value
    return values
