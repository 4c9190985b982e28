"""Checks one blob for all NARs that are listed in it: by its first byte and size, or by every byte."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

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
    """Read a blob's first byte, as a proxy would, and compare its size with what is listed in it."""
    try:
        size = await probe_blob(repository, blob)
    except (DigestError, RegistryError) as error:
        return await _describe_damage(repository, blob, entries, error)
    return _name_problems(entries, {entry.narinfo: _size_error(entry, size) for entry in entries})


async def check_content(
    repository: Repository, blob: Digest, entries: Sequence[Entry], stage: Stage = SILENT
) -> list[Problem]:
    """Download a blob once, and unpack every NAR in it; the stage counts its bytes."""
    try:
        if all(entry.url.offset is not None for entry in entries):
            content = await read_blob(repository, blob, MAX_PACK_BYTES)
            stage.advance(size=len(content))
            by_narinfo = {entry.narinfo: entry for entry in entries}
            errors = await run_in_thread(
                lambda: {narinfo: _slice_error(content, entry) for narinfo, entry in by_narinfo.items()}
            )
            return _name_problems(entries, errors)
        return await _check_stream(repository, blob, entries, stage)
    except (DigestError, FormatError, RegistryError) as error:
        return await _describe_damage(repository, blob, entries, error)


async def stream_blob(
    repository: Repository, blob: Digest, write: Callable[[bytes], object], stage: Stage
) -> int:
    """Download a blob, and pass its chunks to ``write``, which runs on a thread; returns its size in bytes.

    Raises:
        DigestError: the bytes, which were passed on by then, do not match.
        RegistryError: the blob cannot be read.
    """
    hasher = hashlib.sha256()

    def take(chunk: bytes) -> None:
        hasher.update(chunk)
        write(chunk)

    async with open_resuming(repository, blob) as stream:
        async for chunk in stream.chunks:
            await run_in_thread(take, chunk)
            stage.advance(size=len(chunk))
    if hasher.hexdigest() != blob.hex:
        raise DigestError(f"blob {blob} does not match its digest")
    return stream.size


async def _describe_damage(
    repository: Repository, blob: Digest, entries: Sequence[Entry], error: Error
) -> list[Problem]:
    """Name all NARs in a blob that cannot be read; other errors than damage are raised."""
    await raise_unless_damage(repository, error)
    if isinstance(error, NotFoundError):
        return [problem_of(entry, Kind.MISSING, f"blob {blob} is missing") for entry in entries]
    what = f"blob {blob} cannot be read: {error}" if isinstance(error, RegistryError) else str(error)
    return [problem_of(entry, Kind.CONTENT, what) for entry in entries]


def _size_error(entry: Entry, size: int) -> str | None:
    url = entry.url
    if url.offset is not None and url.length is not None:
        end = url.offset + url.length
        return f"it ends at byte {end} of a pack of {size}" if end > size else None
    if entry.narinfo.file_size not in (None, size):
        return f"FileSize is {entry.narinfo.file_size}, and its blob has {counted(size, 'byte')}"
    return None


def _slice_error(content: bytearray, entry: Entry) -> str | None:
    error = _size_error(entry, len(content))
    if error is not None:
        return error
    checker = NarChecker(entry.narinfo)
    start = entry.url.offset or 0
    checker.write(bytes(content[start : start + (entry.url.length or 0)]))
    return checker.finish()


async def _check_stream(
    repository: Repository, blob: Digest, entries: Sequence[Entry], stage: Stage
) -> list[Problem]:
    checkers = {entry.narinfo: NarChecker(entry.narinfo) for entry in entries}

    def write(chunk: bytes) -> None:
        for checker in checkers.values():
            checker.write(chunk)

    await stream_blob(repository, blob, write, stage)
    return _name_problems(entries, {narinfo: checker.finish() for narinfo, checker in checkers.items()})


def _name_problems(entries: Iterable[Entry], errors: Mapping[NarInfo, str | None]) -> list[Problem]:
    return [
        problem_of(entry, Kind.CONTENT, error)
        for entry in entries
        if (error := errors[entry.narinfo]) is not None
    ]
