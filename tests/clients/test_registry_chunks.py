"""Pushing blobs in chunks, where a registry or what is in front of it takes no larger request."""

import asyncio
import random
from itertools import pairwise
from pathlib import Path

import pytest

from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import read
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_faults import RequestRecord
from tests.support.process import until

MIB = 1024 * 1024
_CONTENT = random.Random(20).randbytes(5 * MIB + 123)
_DIGEST = Digest.of(_CONTENT)
_NO_LIMIT = 10**12


@pytest.fixture
def strict(ghcr: GhcrDouble) -> GhcrDouble:
    """One that takes 2 MiB at once, as ACR and R2 do: announced lengths, and each next Location."""
    ghcr.body_limit, ghcr.needs_length, ghcr.has_states = 2 * MIB, True, True
    return ghcr


def sent(ghcr: GhcrDouble, *operations: str) -> list[RequestRecord]:
    return [record for record in ghcr.requests if record.operation in operations]


def operations(ghcr: GhcrDouble) -> list[str]:
    return [record.operation for record in sent(ghcr, "upload-put", "upload-patch")]


def ranges(ghcr: GhcrDouble) -> list[str]:
    return [record.headers["Content-Range"] for record in sent(ghcr, "upload-patch") if record.status == 202]


async def test_what_is_too_large_goes_in_chunks(strict: GhcrDouble, pusher: Registry, tmp_path: Path) -> None:
    """Smaller until they are taken; the size is remembered, and what fits it still goes in one request."""
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert await read(pusher, _DIGEST) == _CONTENT
    assert ranges(strict) == [
        f"{start}-{end - 1}" for start, end in pairwise([*range(0, len(_CONTENT), MIB), len(_CONTENT)])
    ]
    patches = ["upload-patch"] * 6
    assert operations(strict) == ["upload-put", "upload-patch", *patches, "upload-put"]
    strict.reset_requests()
    path = tmp_path / "other"
    path.write_bytes(_CONTENT[::-1])
    await pusher.push_blob(Digest.of(_CONTENT[::-1]), path)
    small = _CONTENT[:MIB]
    await pusher.push_blob(Digest.of(small), small)
    assert operations(strict) == [*patches, "upload-put", "upload-put"]


async def test_the_wanted_size_of_chunks_is_kept(strict: GhcrDouble, pusher: Registry) -> None:
    """It is told when an upload is opened, so that nothing is sent in vain."""
    strict.body_limit, strict.chunk_range = 3 * MIB, (2 * MIB, 3 * MIB)
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert ranges(strict) == [f"0-{3 * MIB - 1}", f"{3 * MIB}-{len(_CONTENT) - 1}"]
    assert len(sent(strict, "upload-put", "upload-patch")) == 3


async def test_no_chunk_is_smaller_than_wanted(strict: GhcrDouble, pusher: Registry) -> None:
    """Where only the least is told, what is tried stays above it."""
    strict.body_limit, strict.chunk_range = 4 * MIB + 500, (4 * MIB + 500, _NO_LIMIT)
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert ranges(strict) == [f"0-{4 * MIB + 499}", f"{4 * MIB + 500}-{len(_CONTENT) - 1}"]


async def test_a_cut_chunk_goes_on_where_it_stands(strict: GhcrDouble, pusher: Registry) -> None:
    """The session is asked for it: of a blob of gigabytes, nothing that arrived is sent again."""
    strict.fault("upload-patch", "cut_request", skip=4, after=MIB // 2)  # the first was too large
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert await read(pusher, _DIGEST) == _CONTENT
    assert len(sent(strict, "upload-get")) == 1
    taken = sum(record.bytes_received for record in sent(strict, "upload-patch", "upload-put"))
    assert taken < len(_CONTENT) + MIB
    assert len(sent(strict, "upload-post")) == 4  # without a token, whole, in chunks of 4 MiB and of 1 MiB


async def test_a_session_that_is_lost_is_opened_anew(strict: GhcrDouble, pusher: Registry) -> None:
    """As by a restart of the registry, which forgets what it was sent."""
    strict.fault("upload-patch", "cut_request", skip=4, after=MIB // 2)
    strict.fault("upload-get", "status", status=404)
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert await read(pusher, _DIGEST) == _CONTENT


@pytest.mark.parametrize("range_header", ["", "0-0", "0-99999999999", "1-5", "bytes=0-1048575"])
async def test_what_a_session_says_of_itself_may_be_anything(
    strict: GhcrDouble, pusher: Registry, range_header: str
) -> None:
    """What makes no sense ends the session, not the push."""
    strict.fault("upload-patch", "cut_request", skip=4, after=MIB // 2)
    strict.fault("upload-get", "status", status=204, headers={"Range": range_header})
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert await read(pusher, _DIGEST) == _CONTENT


async def test_tries_count_from_the_last_progress(strict: GhcrDouble, pusher: Registry) -> None:
    """A line that breaks within every MiB makes any blob slow, but not impossible."""
    strict.fault("upload-patch", "cut_request", skip=2, after=MIB - 1000, times=9)
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert await read(pusher, _DIGEST) == _CONTENT


async def test_tries_without_progress_end(strict: GhcrDouble, pusher: Registry) -> None:
    """Five of them, as of any other request."""
    strict.fault("upload-patch", "refuse", skip=2, times=None)
    with pytest.raises(RegistryError, match="the connection") as raised:
        await pusher.push_blob(_DIGEST, _CONTENT)
    assert raised.value.is_temporary
    assert len(sent(strict, "upload-patch")) == 2 + 5


async def test_a_chunk_that_is_too_large_ends_it(strict: GhcrDouble, pusher: Registry) -> None:
    """Nothing below 1 MiB is tried: the limit has to be raised, or the setting lowered."""
    strict.body_limit = 1000
    with pytest.raises(RegistryError, match="NIXCACHE_MAX_BLOB_BYTES") as raised:
        await pusher.push_blob(_DIGEST, _CONTENT)
    assert (raised.value.status, raised.value.is_temporary) == (413, False)
    assert len(sent(strict, "upload-patch")) == 2


async def test_a_blob_that_is_too_large_is_not_sent_in_smaller_chunks(
    strict: GhcrDouble, pusher: Registry
) -> None:
    """Once chunks were taken, 413 is about the blob."""
    strict.fault("upload-put", "status", skip=1, status=413)
    with pytest.raises(RegistryError, match="413"):
        await pusher.push_blob(_DIGEST, _CONTENT)
    assert len(sent(strict, "upload-patch")) == 1 + 6


async def test_other_forms_of_a_session(strict: GhcrDouble, pusher: Registry) -> None:
    """It may refuse a chunk by its range, when an answer was lost: it is asked where it stands."""
    strict.fault("upload-patch", "status", skip=4, status=416)
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert len(sent(strict, "upload-get")) == 1


async def test_blobs_that_go_up_at_once_learn_from_one_another(strict: GhcrDouble, pusher: Registry) -> None:
    """A refusal that comes late does not bring back a size that was found to be too large."""
    other = _CONTENT[1:]
    strict.fault("upload-put", "stall", after=1)  # in the middle of its answer, 413
    late = asyncio.create_task(pusher.push_blob(_DIGEST, _CONTENT))
    await until(lambda: any(record.status == 413 for record in strict.requests))
    await pusher.push_blob(Digest.of(other), other)
    strict.reset_requests()
    strict.release()
    await late
    assert operations(strict) == [*["upload-patch"] * 6, "upload-put"]
