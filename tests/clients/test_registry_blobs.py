"""Reading blobs, against the double of GHCR and its storage, with what goes wrong on the way."""

import asyncio
import gzip
import random
import re
from collections.abc import Iterator
from typing import Literal

import pytest
from aioresponses import aioresponses

from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import MANIFEST, NAME, opened, owner, read
from tests.support.ghcr import GhcrDouble
from tests.support.upstream_server import Asked, answering, serve

_CONTENT = random.Random(1).randbytes(3 * 1024 * 1024)
_ABSENT = Digest.of(b"absent")


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        double.put_manifest(NAME, "cache-index", MANIFEST)
        yield double


@pytest.fixture
def blob(ghcr: GhcrDouble) -> Digest:
    return ghcr.put_blob(NAME, _CONTENT)


@pytest.mark.parametrize("redirects", [True, False])
async def test_a_blob_comes_whole(
    ghcr: GhcrDouble, registry: Registry, blob: Digest, redirects: bool
) -> None:
    """By a redirect, where the token stays behind; most registries serve it themselves, with the token."""
    ghcr.blob_get_redirects = redirects
    assert await read(registry, blob) == _CONTENT
    operations = [record.operation for record in ghcr.requests]
    assert operations[-2:] == (["blob-get", "storage-get"] if redirects else ["token", "blob-get"])
    assert await read(registry, blob, 5, 9) == _CONTENT[5:9]


@pytest.mark.parametrize("open_ranges", ["ignore", "serve", "refuse"])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 1),
        (0, len(_CONTENT)),
        (100, 2_000_000),
        (len(_CONTENT) - 1, None),
        (1, None),
        (7, 7),
        (len(_CONTENT), None),
    ],
)
async def test_any_part_can_be_read(
    ghcr: GhcrDouble,
    blob: Digest,
    start: int,
    end: int | None,
    open_ranges: Literal["ignore", "serve", "refuse"],
) -> None:
    """Ranges are asked for closed, so that it does not matter how open ones are served."""
    ghcr.open_ranges = open_ranges
    async with opened(ghcr.host, owner(ghcr)) as registry, registry.open_blob(blob, start, end) as part:
        assert (part.size, part.start, part.end) == (
            len(_CONTENT),
            start,
            len(_CONTENT) if end is None else end,
        )
        assert b"".join([chunk async for chunk in part.chunks]) == _CONTENT[start:end]
    asked = [record.headers["Range"] for record in ghcr.requests if "Range" in record.headers]
    assert not [header for header in asked if header.endswith("-")]


@pytest.mark.parametrize(
    ("start", "end"), [(5, 4), (0, len(_CONTENT) + 1), (len(_CONTENT) + 1, None), (-1, 1)]
)
async def test_what_is_not_there_cannot_be_read(
    registry: Registry, blob: Digest, start: int, end: int | None
) -> None:
    """A range outside the blob is an error, never fewer bytes than asked for."""
    with pytest.raises(RegistryError, match=f"get blob {blob}"):
        async with registry.open_blob(blob, start, end):
            pass


async def test_a_size_is_asked_for_once(ghcr: GhcrDouble, registry: Registry, blob: Digest) -> None:
    """Resuming a stream costs one request, since the size is known by then."""
    await read(registry, blob)
    await read(registry, blob, 10)
    await read(registry, blob, 20)
    assert ghcr.count("blob-head") == 0


@pytest.mark.parametrize("status", [200, 307])
async def test_a_size_is_known_by_head_or_first_byte(
    ghcr: GhcrDouble, registry: Registry, blob: Digest, status: Literal[200, 307]
) -> None:
    """A redirected HEAD means that the blob is there; the storage refuses to be asked by HEAD."""
    ghcr.blob_head_status = status
    empty = ghcr.put_blob(NAME, b"")
    assert await registry.stat_blob(blob) == len(_CONTENT)
    assert await registry.stat_blob(empty) == 0
    assert await read(registry, empty) == b""
    assert await read(registry, empty, 0, 0) == b""
    with pytest.raises(NotFoundError, match=f"look for blob {_ABSENT}: .*BLOB_UNKNOWN"):
        await registry.stat_blob(_ABSENT)
    assert ghcr.count("storage-head") == 0


async def test_an_absent_blob_costs_one_request(ghcr: GhcrDouble, registry: Registry) -> None:
    """Publishers ask for many of them: the marks of the registry on a HEAD's answer are enough."""
    await registry.resolve("cache-index")
    ghcr.reset_requests()
    with pytest.raises(NotFoundError):
        await registry.stat_blob(_ABSENT)
    assert [record.operation for record in ghcr.requests] == ["blob-head"]


async def test_a_blob_is_absent_only_by_the_registrys_word(
    ghcr: GhcrDouble, registry: Registry, blob: Digest
) -> None:
    """A bare 404 to HEAD is looked into; one from something in between is no absence."""
    with pytest.raises(NotFoundError, match="BLOB_UNKNOWN"):
        await read(registry, _ABSENT)
    ghcr.fault("blob-head", "status", status=404)
    assert await registry.stat_blob(blob) == len(_CONTENT)
    ghcr.fault("/blobs/", "status", status=404, times=None, body=b"<html>")
    with pytest.raises(RegistryError, match="not how a registry says") as raised:
        await registry.stat_blob(blob)
    assert not isinstance(raised.value, NotFoundError)


async def test_an_expired_signature_is_replaced(ghcr: GhcrDouble, blob: Digest) -> None:
    """A 403 of the storage sends back to the registry, which signs anew; it is no denial of the registry."""
    ghcr.fault("storage-get", "status", status=403, times=2, body=b"<Error>AuthenticationFailed</Error>")
    async with opened(ghcr.host, owner(ghcr), patience=60) as registry:
        assert await read(registry, blob) == _CONTENT
    ghcr.fault("storage-get", "status", status=403, times=None)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(
            RegistryError, match=r"the storage behind the registry answered 403 Forbidden$"
        ) as raised:
            await read(registry, blob)
    assert raised.value.is_temporary


async def test_a_blob_missing_in_the_storage_is_not_absent(
    ghcr: GhcrDouble, registry: Registry, blob: Digest
) -> None:
    """Only the registry knows what it holds."""
    ghcr.fault("storage-get", "status", status=404, times=None, body=b'{"errors":[{"code":"BLOB_UNKNOWN"}]}')
    with pytest.raises(RegistryError) as raised:
        await read(registry, blob)
    assert not isinstance(raised.value, NotFoundError)


@pytest.mark.parametrize("match", ["blob-get", "storage-get"])
@pytest.mark.parametrize("kind", ["refuse", "reset", "lost"])
async def test_opening_is_tried_again(
    ghcr: GhcrDouble, registry: Registry, blob: Digest, match: str, kind: Literal["refuse", "reset", "lost"]
) -> None:
    """Whatever breaks before the first byte is nobody's problem."""
    ghcr.fault(match, kind, times=2)
    assert await read(registry, blob) == _CONTENT


@pytest.mark.parametrize("after", [0, 1, 1_000_000, len(_CONTENT) - 1])
async def test_a_cut_blob_is_temporary_trouble(
    ghcr: GhcrDouble, registry: Registry, blob: Digest, after: int
) -> None:
    """A stream that breaks says so, after the bytes that came: the caller goes on from there."""
    ghcr.fault("storage-get", "cut", after=after)
    got = bytearray()
    with pytest.raises(RegistryError, match=f"get blob {blob}: .*broke before the end") as raised:
        await read(registry, blob, each=got.extend)
    assert raised.value.is_temporary
    assert _CONTENT.startswith(bytes(got))
    assert await read(registry, blob, len(got)) == _CONTENT[len(got) :]


async def test_slowness_is_no_trouble(ghcr: GhcrDouble, blob: Digest) -> None:
    """A download may take far longer than the limit on standing still, and so may its reader."""
    async with opened(ghcr.host, owner(ghcr), stall=0.4) as registry:
        ghcr.bandwidth = 3_500_000
        assert await read(registry, blob) == _CONTENT
        # Over a used connection, on which more than a buffer may be here before the first piece is read.
        ghcr.bandwidth = None
        async with registry.open_blob(blob) as stream:
            first = await anext(stream.chunks)
            await asyncio.sleep(0.8)
            assert first + b"".join([chunk async for chunk in stream.chunks]) == _CONTENT


async def test_leaving_early_ends_the_connection(ghcr: GhcrDouble, registry: Registry, blob: Digest) -> None:
    """What nobody reads is not downloaded."""
    ghcr.bandwidth = 2_000_000
    async with registry.open_blob(blob) as stream:
        await anext(stream.chunks)
    await asyncio.sleep(0.2)
    (record,) = [record for record in ghcr.requests if record.operation == "storage-get"]
    assert record.bytes_sent < len(_CONTENT)


async def test_a_cancelled_reader_ends_the_connection(ghcr: GhcrDouble, blob: Digest) -> None:
    """Also when it is cancelled while it waits for bytes."""
    ghcr.fault("storage-get", "stall", after=1000)
    started = asyncio.Event()
    async with opened(ghcr.host, owner(ghcr), stall=5) as registry:
        reading = asyncio.create_task(read(registry, blob, each=lambda _: started.set()))
        await started.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_connections_are_used_again() -> None:
    """A closure of many paths must not open a connection for each."""
    asked: list[Asked] = []
    async with serve(answering(body=_CONTENT, asked=asked)) as storage:
        around = answering(status=307, headers={"Location": storage}, asked=asked)
        async with serve(around) as url, opened(url.removeprefix("http://"), None) as registry:
            for start in range(10):
                await read(registry, Digest.of(_CONTENT), start, len(_CONTENT))
    assert len({one.peer for one in asked}) == 2  # the registry's, the storage's


# Servers with manners of their own


async def _read_answer(web: aioresponses, status: int, headers: dict[str, str], part: slice) -> bytes:
    web.head(re.compile(".*/blobs/"), headers=headers)
    web.get(re.compile(".*/blobs/"), status=status, headers=headers, body="0123456789", repeat=True)
    async with opened("registry.example", None) as registry:
        return await read(registry, _ABSENT, part.start, part.stop)


@pytest.mark.parametrize("part", [slice(0, 10), slice(3, 7), slice(9, 10), slice(3, None)])
async def test_a_server_without_ranges_is_read_up_to_the_part(web: aioresponses, part: slice) -> None:
    """The whole blob comes with 200; what was not asked for is left out."""
    assert await _read_answer(web, 200, {"Content-Length": "10"}, part) == b"0123456789"[part]


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        (206, {"Content-Range": "bytes 2-11/20"}, "got 2 to 12 of 20"),
        (206, {"Content-Range": "bytes 0-8/20"}, "got 0 to 9 of 20"),
        (206, {"Content-Range": "bytes 0-10/20"}, "got 0 to 11 of 20"),
        (206, {"Content-Range": "bytes 0-9/*"}, "does not state which"),
        (206, {"Content-Range": "bytes 0-9/5"}, "contradicts itself"),
        (206, {}, "does not state which"),
        (206, {"Content-Type": "multipart/byteranges; boundary=x"}, "does not state which"),
        (200, {}, "does not state its length"),
        (204, {}, "204"),
    ],
)
async def test_a_part_that_was_not_asked_for_is_refused(
    web: aioresponses, status: int, headers: dict[str, str], reason: str
) -> None:
    """Bytes from the wrong place would make a wrong NAR."""
    if status == 206:
        headers = {"Content-Length": "10", **headers}
    with pytest.raises(RegistryError, match=reason):
        await _read_answer(web, status, headers, slice(0, 10))


async def test_bytes_are_never_decoded(ghcr: GhcrDouble, registry: Registry, blob: Digest) -> None:
    """What a blob's digest names is what lies there, whatever a server says of its encoding."""
    content = gzip.compress(b"content")
    headers = {"Content-Encoding": "gzip"}
    ghcr.fault("storage-get", "status", status=200, headers=headers, body=content)
    assert await read(registry, blob) == content


async def test_a_blob_may_begin_late(ghcr: GhcrDouble, blob: Digest) -> None:
    """Storage may have to fetch a NAR first: until it begins, its connection may stand still for longer."""
    ghcr.fault("storage-get", "stall", after=0)
    async with opened(ghcr.host, owner(ghcr), stall=0.3) as registry:
        asyncio.get_running_loop().call_later(0.7, ghcr.release)
        async with registry.open_blob(blob) as stream:
            assert stream.size == sum([len(chunk) async for chunk in stream.chunks])
    assert ghcr.count("storage-get") == 1
