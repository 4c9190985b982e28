"""A year of publishes and collections: what the cache weighs then, and what a reader downloads.

    .venv/bin/python -m bench.year --days 365

Every step is checked by an independent oracle; a path that is missing ends the run with an error. The counts
are the same on every machine.
"""

import argparse
import asyncio
import json
import time

from tests.maintenance.simulated_year import Shape, Year


def main() -> None:
    """Simulate, and print one line a figure, then one a month."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    figures = asyncio.run(Year(Shape(days=arguments.days, seed=arguments.seed)).run())
    result = {
        "publishes": figures.publishes,
        "collections": figures.collections,
        "paths": figures.paths,
        "largest_refresh_bytes": figures.largest_refresh,
        "seconds": round(time.monotonic() - started, 1),
    }
    for name, value in result.items():
        print(f"{name}: {value}")
    for month in figures.months:
        print(json.dumps(month._asdict()))


if __name__ == "__main__":
    main()
