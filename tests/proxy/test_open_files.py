"""The limit on open files is raised, and never lowered."""

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from http.client import HTTPException
from pathlib import Path

import pytest

from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.proxy.nar_streams import MOST_STREAMS
from nixcache_oci.proxy.open_files import (
    MOST_CONNECTIONS,
    MOST_FILES,
    ConnectionLimits,
    allow_many_files,
    share_out,
)
from tests.support.journey import push_with, settings_of
from tests.support.objects import store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import CREATED, publish
from tests.support.registries import Ghcr, ghcr_double


@pytest.fixture
def hard() -> Iterator[int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_low_limit_is_raised(hard: int) -> None:
    """As far as the hard one, or as far as is of use."""
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most // 4, hard))
    allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        (MOST_FILES, ConnectionLimits(MOST_CONNECTIONS, MOST_STREAMS)),
        (20_000, ConnectionLimits(MOST_CONNECTIONS, MOST_STREAMS)),
        (1024, ConnectionLimits(448, 128)),
        (256, ConnectionLimits(88, 28)),
        (128, ConnectionLimits(40, 12)),
        (64, ConnectionLimits(16, 4)),
    ],
)
def test_files_are_shared_out(files: int, limits: ConnectionLimits) -> None:
    """Clients leave enough of them for what the registry, upstreams and layouts send."""
    assert share_out(files) == limits


def test_no_more_is_shared_out_than_there_is() -> None:
    """Below 48, where hardly anything could be served, the fewest are promised all the same."""
    for files in range(48, 6000):
        limits = share_out(files)
        assert limits.connections + 4 * limits.streams < files


OBJECTS = [store_object(f"few-{number}") for number in range(60)]


@pytest.fixture(scope="module")
def day() -> Iterator[Ghcr]:
    """A cache that was published to once for every path."""
    with ghcr_double() as registry:
        for hours, one in enumerate(OBJECTS):
            created = CREATED + timedelta(hours=hours)
            push_with(registry, partial(publish, objects=[one], created=created, in_packs=bool(hours % 2)))
        yield registry


@pytest.mark.parametrize("most_files", [64, 128, 256])
def test_few_files_serve_everything(day: Ghcr, tmp_path: Path, most_files: int) -> None:
    """Segments take none; clients beyond the limit wait, or are told to come again, as HTTP has it."""
    proxy = ProxyProcess(tmp_path, **settings_of(day, tmp_path))
    proxy.most_files = most_files

    def realise() -> list[bytes]:
        got = []
        for one in OBJECTS:
            narinfo = ask(proxy, f"/{one.narinfo.store_path.hash_part}.narinfo")
            got.append(ask(proxy, f"/{NarInfo.parse(narinfo).url}"))
        return got

    with proxy, ThreadPoolExecutor(48) as threads:
        status = proxy.wait_ready()
        assert status["index"]["damaged_count"] == 0
        expected = [one.compressed()[1] for one in OBJECTS]
        for running in [threads.submit(realise) for _ in range(48)]:
            assert running.result() == expected
        assert "Too many open files" not in proxy.log


def ask(proxy: ProxyProcess, path: str) -> bytes:
    """Ask again where the connection was closed: Nix does so, too."""
    while True:
        try:
            answer = proxy.ask(path)
        except (OSError, HTTPException):
            continue
        assert answer.status == 200, path
        return answer.body
