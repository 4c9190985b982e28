"""A short load: the proxy under many clients, while everything behind it fails now and then.

``make soak`` has the long one, with a thousand connections; both print what they saw where they fail.
"""

from pathlib import Path

from tests.soak.catalogue import Shape
from tests.soak.chaos import Pace
from tests.soak.load import Load, Size
from tests.soak.verdict import assert_held

SIZE = Size(
    seconds=6,
    warm_seconds=0,  # what it holds after the load is compared with what it held when it began
    transfer_seconds=(0.1, 2),
    connections=150,
    kept=4,
    late=3,
    shape=Shape(small=20, small_kib=(4, 80), large=4, large_kib=(300, 900)),
    late_shape=Shape(small=4, small_kib=(4, 20), large=1, large_kib=(300, 400)),
    upstream=Shape(small=4, small_kib=(4, 80), large=3, large_kib=(300, 900)),
    settle_seconds=30,
    pace=Pace(faults_per_second=8, outage_seconds=0.3, wrong_bytes=8, release_seconds=1),
    least_connections=1,  # a busy machine may be late with everything
    least_nars=1,
    growth_bytes=40 * 1024 * 1024,
    spare_files=50,
)


async def test_a_load_in_trouble(tmp_path: Path) -> None:
    """Nothing leaks, no byte is wrong, and no request goes without an answer."""
    load = Load(tmp_path, SIZE, "1")
    outcome = await load.run()
    assert_held(outcome, SIZE)
