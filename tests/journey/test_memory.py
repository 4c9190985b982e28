"""Memory is bounded, whatever the size of NARs and the number of clients."""

from pathlib import Path

import pytest

from tests.support.memory import measure
from tests.support.registries import docker_registry

ALLOWED_BYTES = 150 * 1024 * 1024


@pytest.mark.needs("docker-registry")
def test_sixteen_clients_at_once(tmp_path: Path) -> None:
    """One piece a stream: the NAR is as large as the whole allowance; ``bench.memory`` takes 1 GB."""
    with docker_registry() as registry:
        use = measure(registry, tmp_path, clients=16, mebibytes=150)
    assert use.peak_bytes - use.idle_bytes < ALLOWED_BYTES
