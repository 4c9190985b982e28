"""The limit on open files is raised, and never lowered."""

import resource
from collections.abc import Iterator

import pytest

from nixcache_oci.proxy.open_files import MOST_FILES, allow_many_files


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
