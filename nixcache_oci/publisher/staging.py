"""Staging: a store object becomes a compressed NAR, checked against the store's record.

Small NARs stay in memory, large ones go to a file. Blocking work runs on threads.
"""

import asyncio
import errno
import hashlib
import io
import lzma
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

import zstandard

from nixcache_oci.cache.nar_url import SUFFIXES, NarUrl
from nixcache_oci.cache.parallel import retrieve
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import Error, FormatError, StoreError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.options import NarEncoding
from nixcache_oci.wording import counted

LARGE_NAR_BYTES: Final = 4 * 1024 * 1024
"""From this size on, a NAR is staged in a file, and compressed by several cores."""

_MOST_THREADS: Final = 4  # each takes about 10 MiB at the default level, and 100 MiB at the highest
_PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class StagedNar:
    """A compressed NAR, to be sent."""

    narinfo: NarInfo  # complete, with the URL of a blob of its own
    digest: Digest  # of the compressed bytes
    size: int  # of the compressed bytes
    content: bytes | Path  # the bytes, or a file, which the sender removes

    def read(self) -> bytes:
        """Return the bytes; only for those that fit into a pack."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content

    def discard(self) -> None:
        """Remove the file."""
        if isinstance(self.content, Path):
            self.content.unlink(missing_ok=True)


StageNar = Callable[[PathInfo], "asyncio.Future[StagedNar]"]
"""Starts staging one; the future fails with a StoreError if that one cannot be staged."""


class NarStager(Protocol):
    """Stages compressed NARs, from the local store or from another cache."""

    def checks(self, info: PathInfo) -> bool:
        """Tell whether its NAR is held to its NarHash here: only then may it be signed."""

    def opened(self, folder: Path) -> AbstractAsyncContextManager[StageNar]:
        """Stage while the block runs; then cancel what is still being staged.

        The folder is for the files of large NARs, which are not removed here.
        """


class StagingFolderError(Error):
    """The folder for staged NARs is full, or cannot be written: nothing more can be staged."""


class StagingStoppedError(Error):
    """Staging was cancelled."""


class StoreNarStager:
    """Stages NARs of store objects on ``jobs`` threads; implements ``NarStager``."""

    def __init__(
        self,
        real_path: Callable[[PathInfo], Path],
        encoding: NarEncoding,
        jobs: int,
        max_blob_bytes: int | None = None,
    ) -> None:
        self._real_path = real_path
        self._encoding = encoding
        self._max_blob_bytes = max_blob_bytes
        self._jobs = jobs

    def checks(self, info: PathInfo) -> bool:  # noqa: ARG002  part of the protocol
        """Hold every one to it."""
        return True

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[StageNar]:
        """Stage while the block runs; then stop the threads, and wait for them."""
        is_stopped = threading.Event()
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="stage")
        loop = asyncio.get_running_loop()

        def begin(info: PathInfo) -> "asyncio.Future[StagedNar]":
            staging = loop.run_in_executor(
                pool,
                stage,
                info,
                self._real_path(info),
                folder,
                self._encoding,
                is_stopped.is_set,
                self._max_blob_bytes,
            )
            staging.add_done_callback(retrieve)
            return staging

        try:
            yield begin
        finally:
            is_stopped.set()
            pool.shutdown(cancel_futures=True)


def is_large(info: PathInfo | NarInfo) -> bool:
    """Check whether it is staged in a file."""
    return info.nar_size >= LARGE_NAR_BYTES


def stage(
    info: PathInfo,
    real_path: Path,
    folder: Path,
    encoding: NarEncoding,
    is_stopped: Callable[[], bool],
    max_blob_bytes: int | None = None,
) -> StagedNar:
    """Dump and compress a store object; blocks, and asks ``is_stopped`` for each piece.

    Raises:
        StoreError: its files do not match the store's record, or cannot be read; or it is over
            ``max_blob_bytes``, the limit of the registry.
        StagingFolderError: the folder is full.
        StagingStoppedError: ``is_stopped``.
    """

    def keep_going() -> None:
        if is_stopped():
            raise StagingStoppedError(f"{info.store_path}: nobody wants it any more")
        check_size(info.store_path, max_blob_bytes, sink.size)

    def dumped() -> Iterator[bytes]:
        for chunk in _checked(info, dump(real_path, use_case_hack=sys.platform == "darwin")):
            yield chunk
            keep_going()

    with opened_sink(info, folder) as sink:
        try:
            for piece in _compress(dumped(), encoding, is_large=is_large(info)):
                sink.write(piece)
                keep_going()
            digest = Digest(sink.hasher.hexdigest())
            narinfo = NarInfo(
                store_path=info.store_path,
                url=str(NarUrl(digest, suffix=SUFFIXES[encoding.compression])),
                compression=encoding.compression,
                nar_hash=info.nar_hash,
                nar_size=info.nar_size,
                file_hash=NixHash(sink.hasher.digest()),
                file_size=sink.size,
                references=info.references,
                deriver=info.deriver,
                sigs=info.sigs,
                ca=info.ca,
            )
        except OSError as error:
            name = f"{os.fsdecode(error.filename)} " if error.filename else ""
            raise StoreError(_plain(f"{info.store_path}: {name}cannot be read: {error.strerror}")) from None
        except FormatError as error:
            raise StoreError(_plain(f"{info.store_path}: {error}")) from None
    return StagedNar(narinfo, digest, sink.size, sink.content)


@contextmanager
def opened_sink(info: PathInfo | NarInfo, folder: Path) -> Iterator["Sink"]:
    """Open memory, or a file for a large NAR, removed if the block fails; StagingFolderError if full."""
    if not is_large(info):
        yield Sink(io.BytesIO())
        return
    path = folder / f"{info.store_path.hash_part}.nar"
    try:
        file = path.open("w+b")
    except OSError as error:
        raise _folder_error(folder, error) from None
    try:
        with file:
            yield Sink(file)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):  # closing a file writes what is left
            raise _folder_error(folder, error) from None
        raise


def _compress(chunks: Iterable[bytes], encoding: NarEncoding, *, is_large: bool) -> Iterator[bytes]:
    match encoding.compression:
        case "zstd":
            # Small NARs are compressed concurrently already. Multi-threaded output differs from that of one
            # thread, but not by the number of threads: all machines produce the same blobs.
            threads = min(os.cpu_count() or 1, _MOST_THREADS) if is_large else 0
            compressor = zstandard.ZstdCompressor(level=encoding.used_level, threads=threads)
            # In pieces: the end of a large stream can take seconds, and may be cancelled meanwhile.
            chunker = compressor.chunker(chunk_size=_PIECE_BYTES)
            for chunk in chunks:
                yield from chunker.compress(chunk)
            yield from chunker.finish()  # type: ignore[no-untyped-call]  # its stub lacks the type
        case "xz":
            xz = lzma.LZMACompressor(preset=encoding.used_level)
            for chunk in chunks:
                yield xz.compress(chunk)
            yield xz.flush()
        case "none":
            yield from chunks


def _checked(info: PathInfo, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Forward a NAR; fail at its end, or where it should end, if it is not the recorded one."""
    hasher, size = hashlib.sha256(), 0
    for chunk in chunks:
        hasher.update(chunk)
        size += len(chunk)
        if size > info.nar_size:
            break  # the rest may be of any size
        yield chunk
    if (NixHash(hasher.digest()), size) != (info.nar_hash, info.nar_size):
        raise StoreError(
            f"{info.store_path}: its files do not match what the store recorded ({info.nar_hash}): changed "
            "or damaged; check it with nix-store --verify-path, and repair it with nix-store --repair-path"
        )


def check_size(store_path: StorePath, max_blob_bytes: int | None, size: int) -> None:
    """Check the registry's limit of a blob; StoreError if it is over that."""
    if max_blob_bytes is not None and size > max_blob_bytes:
        raise StoreError(
            f"{store_path}: over {counted(max_blob_bytes, 'byte')} even compressed, which is more than the "
            "registry takes as one blob; split it, compress it more, or keep it out of the cache"
        )


class Sink:
    """Hashes and counts what it writes to an empty file, in memory or on disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hasher = hashlib.sha256()
        self.size = 0

    @property
    def content(self) -> bytes | Path:
        """What was written, or the file that holds it."""
        return self.file.getvalue() if isinstance(self.file, io.BytesIO) else Path(self.file.name)

    def write(self, piece: bytes) -> None:
        """Write; StagingFolderError if the folder is full."""
        self.hasher.update(piece)
        self.size += len(piece)
        try:
            self.file.write(piece)
        except OSError as error:
            raise _folder_error(Path(self.file.name).parent, error) from None


def _folder_error(folder: Path, error: OSError) -> StagingFolderError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StagingFolderError(f"{folder}: no space left to stage NARs in; set TMPDIR to a larger disk")
    return StagingFolderError(f"{folder}: NARs cannot be staged there: {error.strerror}; set TMPDIR")


def _plain(text: str) -> str:
    """Escape text with names of files, which may be any bytes, to one line."""
    return text.encode(errors="backslashreplace").decode().replace("\n", "\\n")
