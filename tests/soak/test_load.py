"""Ten minutes of a thousand connections, while everything behind the proxy fails now and then."""

import os
import random
from pathlib import Path

import pytest

from tests.soak.catalogue import Shape
from tests.soak.chaos import Pace
from tests.soak.load import Load, Size
from tests.soak.verdict import assert_held, report_load

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SEED = os.environ.get("SOAK_SEED", "")
SIZE = Size(
    seconds=SECONDS,
    warm_seconds=min(60.0, SECONDS / 5),
    transfer_seconds=(4, 12),
    connections=1100,
    kept=16,
    late=max(4, round(SECONDS / 6)),
    shape=Shape(small=40, small_kib=(20, 150), large=6, large_kib=(300, 6000)),
    late_shape=Shape(small=10, small_kib=(4, 40), large=1, large_kib=(300, 800)),
    upstream=Shape(small=10, small_kib=(20, 150), large=10, large_kib=(300, 4000)),
    settle_seconds=60,
    pace=Pace(faults_per_second=4, outage_seconds=3),
    least_connections=1000,
    least_nars=200,
    growth_bytes=24 * 1024 * 1024,
    spare_files=0,
)


@pytest.mark.timeout(SECONDS + 900)
async def test_a_thousand_connections(tmp_path: Path) -> None:
    """Nothing leaks, no byte is wrong, and no request goes without an answer."""
    load = Load(tmp_path, SIZE, SEED or str(random.randrange(10**6)))
    try:
        outcome = await load.run()
    finally:
        print(load.outcome.figures())  # noqa: T201  the figures are what this is run for
    report_load(outcome, SIZE)
    assert_held(outcome, SIZE)
