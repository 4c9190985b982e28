"""Where a NAR's bytes come from: one request for all who ask the same, and nothing that was found wrong."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.nar_source import MOST_UNKNOWN
from tests.support.front import let_run
from tests.support.slow_repository import NarBench


@pytest.fixture
async def bench() -> AsyncIterator[NarBench]:
    bench = NarBench()
    yield bench
    await bench.close()


async def test_sizes_are_asked_for_once(bench: NarBench) -> None:
    """Sixteen clients, one of whom hangs up, cost one request; later ones cost none."""
    blob = bench.repository.add(b"blob")
    bench.repository.gate.clear()
    clients = [asyncio.create_task(bench.nars.size(blob)) for _ in range(16)]
    await let_run()
    clients[0].cancel()
    await let_run()
    bench.repository.gate.set()
    assert await asyncio.gather(*clients[1:]) == [4] * 15
    assert await bench.nars.size(blob) == 4
    assert bench.repository.opened == [blob]


async def test_a_size_that_could_not_be_had_is_asked_for_again(bench: NarBench) -> None:
    """One failure must not stay; nor is it lost on anybody that all clients had gone."""
    blob = Digest.of(b"late")
    bench.repository.error = RegistryError("busy", is_temporary=True)
    client = asyncio.create_task(bench.nars.size(blob))
    await asyncio.sleep(0)
    client.cancel()
    await let_run()
    with pytest.raises(RegistryError):
        await bench.nars.size(blob)
    bench.repository.error = None
    bench.repository.add(b"late")
    assert await bench.nars.size(blob) == 4


async def test_what_is_not_there_is_not_asked_for_again_and_again(bench: NarBench) -> None:
    """Anybody can make digests up. A new index may bring what was missing: then it is found at once."""
    blob = Digest.of(b"late")
    url = NarUrl.parse(f"nar/{Digest.of(b'pack').hex}/0-1.nar.zst")
    for _ in range(5):
        with pytest.raises(NotFoundError):
            await bench.nars.size(blob)
        with pytest.raises(NotFoundError):
            async with bench.nars.whole(blob):
                pass
        with pytest.raises(NotFoundError):
            async with bench.nars.part(blob, 0, 1):
                pass
        with pytest.raises(NotFoundError):
            await bench.nars.slice_of_pack(url)
    # Twice, for once may be a mistake.
    assert sorted(map(str, bench.repository.opened)) == sorted(map(str, [blob, url.blob] * 2))
    bench.repository.add(b"late")
    bench.generation = object()
    assert await bench.nars.size(blob) == 4


async def test_few_unknown_digests_are_asked_for_at_once(bench: NarBench) -> None:
    """A client that makes digests up cannot have the registry flooded; each of the others has its turn."""
    blobs = [bench.repository.add(b"%d" % number) for number in range(3 * MOST_UNKNOWN)]
    bench.repository.gate.clear()
    clients = [asyncio.create_task(bench.nars.size(blob)) for blob in blobs]
    await let_run()
    assert len(bench.repository.opened) == MOST_UNKNOWN
    bench.repository.gate.set()
    assert await asyncio.gather(*clients) == [len(bench.repository.blobs[blob]) for blob in blobs]


async def test_a_whole_blob_tells_its_size(bench: NarBench) -> None:
    """A resume, which needs the size, costs no further request then."""
    blob = bench.repository.add(b"blob")
    async with bench.nars.whole(blob) as (size, chunks):
        assert size == 4
        assert [chunk async for chunk in chunks] == [b"blob"]
    assert await bench.nars.size(blob) == 4
    assert bench.repository.opened == [blob]


async def test_what_was_wrong_is_not_there_any_more(bench: NarBench) -> None:
    """Whole, in part, its size, or as a pack: a resume must end, and end gracefully."""
    blob = Digest.of(b"right")
    bench.repository.blobs[blob] = b"wrong"
    with pytest.raises(DigestError):
        async with bench.nars.whole(blob) as (_, chunks):
            assert [chunk async for chunk in chunks] == []
    bench.repository.opened.clear()
    with pytest.raises(NotFoundError):
        await bench.nars.size(blob)
    with pytest.raises(NotFoundError):
        await bench.nars.slice_of_pack(NarUrl(blob, 0, 1))
    assert bench.nars.cached(NarUrl(blob, 0, 1)) is None
    with pytest.raises(NotFoundError):
        async with bench.nars.whole(blob):
            pass
    with pytest.raises(NotFoundError):
        async with bench.nars.part(blob, 1, 2):
            pass
    assert bench.repository.opened == []


async def test_the_length_of_what_was_wrong_is_not_remembered(bench: NarBench) -> None:
    """Once the blob may be asked for again, a part of it must not be held to the length of an error page."""
    blob = bench.repository.add(b"right")
    bench.repository.blobs[blob] = b"no"
    with pytest.raises(DigestError):
        async with bench.nars.whole(blob) as (_, chunks):
            assert [chunk async for chunk in chunks] == []
    bench.repository.blobs[blob] = b"right"
    bench.quarantine._until.clear()  # its ten minutes are over
    assert await bench.nars.size(blob) == 5


@pytest.mark.parametrize(("offset", "length", "content"), [(0, 4, b"pack"), (1, 2, b"ac"), (3, 1, b"k")])
async def test_a_slice_is_cut_out(bench: NarBench, offset: int, length: int, content: bytes) -> None:
    """Offset and length, as the URL says; at hand once somebody has waited for the pack."""
    pack = bench.repository.add(b"pack")
    assert bench.nars.cached(NarUrl(pack, offset, length)) is None
    assert await bench.nars.slice_of_pack(NarUrl(pack, offset, length)) == content
    assert bench.nars.cached(NarUrl(pack, offset, length)) == memoryview(content)


@pytest.mark.parametrize(("offset", "length"), [(0, 5), (4, 1), (3, 2), (100, 1)])
async def test_a_slice_that_does_not_lie_in_the_pack(bench: NarBench, offset: int, length: int) -> None:
    """Never fewer bytes than asked for."""
    pack = bench.repository.add(b"pack")
    with pytest.raises(FormatError, match="are outside"):
        await bench.nars.slice_of_pack(NarUrl(pack, offset, length))
    assert bench.nars.cached(NarUrl(pack, offset, length)) is None


async def test_what_went_wrong_since_is_not_at_hand(bench: NarBench) -> None:
    """The pack in memory is right, but both ways speak of the blob as the repository shows it now."""
    url = NarUrl(bench.repository.add(b"pack"), 0, 4)
    await bench.nars.slice_of_pack(url)
    bench.quarantine.add(url.blob)
    assert bench.nars.cached(url) is None


async def test_closing_ends_what_is_under_way(bench: NarBench) -> None:
    """No task is left behind."""
    bench.repository.gate.clear()
    client = asyncio.create_task(bench.nars.size(bench.repository.add(b"blob")))
    await let_run()
    await bench.nars.close()
    await asyncio.wait([client])
    assert client.cancelled()
