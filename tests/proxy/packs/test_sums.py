"""Parts of a pack, each checked alone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import DigestError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.packs.sums import BLOCK_BYTES, PackSums
from tests.support.slow_repository import SlowRepository

CONTENT = random.Random(1).randbytes(3 * BLOCK_BYTES + 100)
EDGES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES, len(CONTENT) - 1, len(CONTENT)]
places = st.sampled_from(EDGES) | st.integers(0, len(CONTENT))


@given(places, places)
async def test_any_part_is_what_it_was(one: int, other: int) -> None:
    """And no more than its blocks is asked for."""
    start, end = min(one, other), max(one, other)
    repository = SlowRepository()
    pack = repository.add(CONTENT)
    sums = PackSums.of(bytearray(CONTENT))
    assert await sums.read(repository, pack, start, end) == CONTENT[start:end]
    if start < end:
        [(_, extent)] = repository.extents
        assert extent is not None
        assert extent[0] <= start
        assert extent[1] is not None
        assert end <= extent[1] <= min(len(CONTENT), end + BLOCK_BYTES)
        assert start - extent[0] < BLOCK_BYTES


@given(places, places, st.integers(0, len(CONTENT) - 1))
async def test_a_wrong_byte_is_never_given(one: int, other: int, wrong: int) -> None:
    """Where it lies in the part, or in its blocks."""
    start, end = min(one, other), max(one, other)
    repository = SlowRepository()
    pack = Digest.of(CONTENT)
    content = bytearray(CONTENT)
    content[wrong] ^= 1
    repository.blobs[pack] = bytes(content)
    sums = PackSums.of(bytearray(CONTENT))
    try:
        assert await sums.read(repository, pack, start, end) == CONTENT[start:end]
    except DigestError:
        assert start - BLOCK_BYTES < wrong < end + BLOCK_BYTES
    else:
        assert not start <= wrong < end


async def test_a_pack_of_another_size_is_not_read() -> None:
    """What is there under its name is something else."""
    repository = SlowRepository()
    pack = Digest.of(CONTENT)
    repository.blobs[pack] = CONTENT + b"more"
    with pytest.raises(RegistryError, match="bytes now"):
        await PackSums.of(bytearray(CONTENT)).read(repository, pack, 0, 10)
