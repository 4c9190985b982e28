"""Checking one blob for all who are said to lie in it: by its first byte and size, or by every byte."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.inventory import Entry
from nixcache_oci.cache.nar_url import MAX_PACK_BYTES
from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.cache.progress import SILENT, Stage
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import open_resuming, probe_blob, read_blob
from nixcache_oci.errors import DigestError, Error, FormatError, NotFoundError, RegistryError
from nixcache_oci.maintenance.problem import Kind, Problem, problem_of
from nixcache_oci.nix.nar_check import NarChecker
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted


async def check_start(repository: Repository, blob: Digest, entries: Sequence[Entry]) -> list[Problem]:
    """Read a blob's first byte, as a proxy would, and hold its size to what is said to lie in it."""
    try:
        size = await probe_blob(repository, blob)
    except (DigestError, RegistryError) as error:
        return await _describe_damage(repository, blob, entries, error)
    return _with_trouble(entries, {entry.narinfo: _size_trouble(entry, size) for entry in entries})


async def check_content(
    repository: Repository, blob: Digest, entries: Sequence[Entry], stage: Stage = SILENT
) -> list[Problem]:
    """Download a blob once, and unpack every NAR in it; the stage is told of its bytes."""
    try:
        if all(entry.url.offset is not None for entry in entries):
            content = await read_blob(repository, blob, MAX_PACK_BYTES)
            stage.advance(size=len(content))
            return await run_in_thread(_check_pack, content, entries)
        return await _check_stream(repository, blob, entries, stage)
    except (DigestError, FormatError, RegistryError) as error:
        return await _describe_damage(repository, blob, entries, error)


async def _describe_damage(
    repository: Repository, blob: Digest, entries: Sequence[Entry], error: Error
) -> list[Problem]:
    """Name all that lies in a blob that cannot be read; where that is no fault of the blob, it is raised."""
    await raise_unless_damage(repository, error)
    if isinstance(error, NotFoundError):
        return [problem_of(entry, Kind.MISSING, f"blob {blob} is missing") for entry in entries]
    what = f"blob {blob} cannot be read: {error}" if isinstance(error, RegistryError) else str(error)
    return [problem_of(entry, Kind.CONTENT, what) for entry in entries]


def _size_trouble(entry: Entry, size: int) -> str | None:
    url = entry.url
    if url.offset is not None and url.length is not None:
        end = url.offset + url.length
        return f"it ends at byte {end} of a pack of {size}" if end > size else None
    if entry.narinfo.file_size not in (None, size):
        return f"FileSize is {entry.narinfo.file_size}, and its blob has {counted(size, 'byte')}"
    return None


def _check_pack(content: bytearray, entries: Iterable[Entry]) -> list[Problem]:
    entries = list(entries)
    troubles: dict[NarInfo, str | None] = {}
    for entry in entries:
        if entry.narinfo not in troubles:
            troubles[entry.narinfo] = _slice_trouble(content, entry)
    return _with_trouble(entries, troubles)


def _slice_trouble(content: bytearray, entry: Entry) -> str | None:
    trouble = _size_trouble(entry, len(content))
    if trouble is not None:
        return trouble
    checker = NarChecker(entry.narinfo)
    start = entry.url.offset or 0
    checker.write(bytes(content[start : start + (entry.url.length or 0)]))
    return checker.finish()


async def _check_stream(
    repository: Repository, blob: Digest, entries: Sequence[Entry], stage: Stage
) -> list[Problem]:
    checkers = {entry.narinfo: NarChecker(entry.narinfo) for entry in entries}
    hasher = hashlib.sha256()

    def write(chunk: bytes) -> None:
        hasher.update(chunk)
        for checker in checkers.values():
            checker.write(chunk)

    async with open_resuming(repository, blob) as stream:
        async for chunk in stream.chunks:
            await run_in_thread(write, chunk)
            stage.advance(size=len(chunk))
    if hasher.hexdigest() != blob.hex:
        raise DigestError(f"blob {blob} does not match its digest")
    return _with_trouble(entries, {narinfo: checker.finish() for narinfo, checker in checkers.items()})


def _with_trouble(entries: Iterable[Entry], troubles: Mapping[NarInfo, str | None]) -> list[Problem]:
    return [
        problem_of(entry, Kind.CONTENT, trouble)
        for entry in entries
        if (trouble := troubles[entry.narinfo]) is not None
    ]
