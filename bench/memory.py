"""Memory while many clients download one large NAR from a local docker-registry."""

import tempfile
from pathlib import Path

from bench.figures import Series, Target
from bench.scenario import OURS, Bench, Measurement
from tests.support.memory import measure
from tests.support.registries import docker_registry

TITLE = "16 clients download one large NAR at once"

_MIB = 1024 * 1024
_CLIENTS = 16
_PEAK = Series("peak resident memory over idle", "MiB")
_SPEED = Series("all clients together", "MiB/s", better="higher")


def run(bench: Bench) -> None:
    """Measure; the size of the NAR must not matter."""
    bench.compare({OURS: lambda: _measure(256 if bench.is_quick else 1024)}, rounds=1)
    bench.expect(Target(_PEAK, OURS, 80))


def _measure(mebibytes: int) -> Measurement:
    with docker_registry() as registry, tempfile.TemporaryDirectory() as folder:
        use = measure(registry, Path(folder), clients=_CLIENTS, mebibytes=mebibytes)
    return {
        _PEAK: (use.peak_bytes - use.idle_bytes) / _MIB,
        _SPEED: use.bytes_per_second / _MIB,
    }
