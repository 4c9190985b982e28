"""The limit on open files is raised, and never lowered."""

import resource
from collections.abc import Iterator

import pytest

from nixcache_oci.proxy.nar_streams import MOST_STREAMS
from nixcache_oci.proxy.open_files import (
    MOST_CONNECTIONS,
    MOST_FILES,
    ConnectionLimits,
    allow_many_files,
    share_out,
)


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
        (256, ConnectionLimits(64, 32)),
        (64, ConnectionLimits(16, 16)),
    ],
)
def test_files_are_shared_out(files: int, limits: ConnectionLimits) -> None:
    """Clients leave enough of them for what the registry, upstreams and layouts send."""
    assert share_out(files) == limits


def test_no_more_is_shared_out_than_there_is() -> None:
    """Where there are so few that nothing could be served, the fewest are promised all the same."""
    for files in range(160, 6000):
        limits = share_out(files)
        assert limits.connections + 4 * limits.streams < files
