"""The same journey at registries that can be built here: crane's, and distribution 3."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.journey.registry_story import Place, run_journey, write_large
from tests.support.programs import require_program

pytestmark = pytest.mark.registries

_START_SECONDS = 20
_LISTENING = re.compile(r"(?:listening on|serving on port) \D*(?:127\.0\.0\.1:)?(\d+)", re.IGNORECASE)


@contextmanager
def started(folder: Path, *command: str, **environment: str) -> Iterator[str]:
    """Run a registry on a free port; gives its ``host:port``."""
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [require_program(command[0]), *command[1:]],
            env={**os.environ, **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        try:
            end = time.monotonic() + _START_SECONDS
            while (match := _LISTENING.search(log.read_text(errors="replace"))) is None:
                assert process.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < end, log.read_text(errors="replace")
                time.sleep(0.05)
            yield f"127.0.0.1:{match[1]}"
        finally:
            process.terminate()
            process.wait()


async def journey(host: str, folder: Path) -> None:
    places = Place(host, "octocat/hello"), Place(host, "octocat/back")
    await run_journey(*places, write_large(folder / "large", 200), folder)


@pytest.mark.needs("crane")
async def test_cranes(tmp_path: Path) -> None:
    """It is in memory, and answers as the specification has it."""
    with started(tmp_path, "crane", "registry", "serve", "--address", "127.0.0.1:0") as host:
        await journey(host, tmp_path)


@pytest.mark.needs("registry")
async def test_distribution_3(tmp_path: Path) -> None:
    """With deleting allowed, as gc needs it."""
    config = tmp_path / "config.yml"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "data")}, "delete": {"enabled": True}}
    # JSON is YAML, too.
    config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": "127.0.0.1:0"}}))
    with started(tmp_path, "registry", "serve", str(config), OTEL_TRACES_EXPORTER="none") as host:
        await journey(host, tmp_path)
