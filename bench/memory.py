"""Memory and throughput while many clients download one large NAR from a local docker-registry.

.venv/bin/python -m bench.memory --clients 16 --mebibytes 1024
"""

import argparse
import json
import tempfile
from pathlib import Path

from tests.support.memory import measure
from tests.support.registries import docker_registry

_MIB = 1024 * 1024


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--mebibytes", type=int, default=1024)
    arguments = parser.parse_args()
    with docker_registry() as registry, tempfile.TemporaryDirectory() as folder:
        use = measure(registry, Path(folder), clients=arguments.clients, mebibytes=arguments.mebibytes)
    result = {
        "idle_mib": round(use.idle_bytes / _MIB, 1),
        "peak_over_idle_mib": round((use.peak_bytes - use.idle_bytes) / _MIB, 1),
        "mib_per_second": round(use.bytes_per_second / _MIB, 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
