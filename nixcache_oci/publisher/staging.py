"""Staging: a store object becomes a compressed NAR, checked against what the store says of it.

Small NARs stay in memory, large ones go to a file. What blocks does so on threads.
"""

import asyncio
import errno
import hashlib
import io
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

from nixcache_oci.cache.nar_url import SUFFIXES, NarUrl
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import Error, FormatError, StoreError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.compression import NarEncoding, make_compressor
from nixcache_oci.wording import counted

LARGE_NAR_BYTES: Final = 4 * 1024 * 1024
"""From here on, a NAR is staged in a file, and compressed by several cores."""


@dataclass(frozen=True, slots=True)
class StagedNar:
    """A compressed NAR that waits to be sent.

    Attributes:
        narinfo: all of it, with the URL of a blob of its own.
        digest: of the compressed bytes.
        size: of the compressed bytes.
        content: the bytes, or the file that holds them; whoever sends it removes it.
    """

    narinfo: NarInfo
    digest: Digest
    size: int
    content: bytes | Path

    def read(self) -> bytes:
        """Give the bytes; only for those that fit into a pack."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content

    def discard(self) -> None:
        """Remove the file."""
        if isinstance(self.content, Path):
            self.content.unlink(missing_ok=True)


StageNar = Callable[[PathInfo], "asyncio.Future[StagedNar]"]
"""Begins to stage one; the future fails with a StoreError where that one cannot be had."""


class NarStager(Protocol):
    """Stages compressed NARs: of the local store, or out of another cache."""

    def checks(self, info: PathInfo) -> bool:
        """Tell whether its NAR is held to its NarHash here: only then may it be signed."""

    def opened(self, folder: Path) -> AbstractAsyncContextManager[StageNar]:
        """Stage for as long as the block runs; then what is still being staged is given up.

        Args:
            folder: for the files of large ones, which are not removed here.
        """


class StagingFolderError(Error):
    """The folder for staged NARs is full, or cannot be written: nothing more can be staged."""


class StagingStoppedError(Error):
    """Nobody wants it any more."""


class StoreNarStager:
    """Stages the NARs of store objects, on threads of its own; implements ``NarStager``.

    Args:
        real_path: tells where an object's files are.
        encoding: how to compress.
        jobs: how many objects at once.
    """

    def __init__(self, real_path: Callable[[PathInfo], Path], encoding: NarEncoding, jobs: int) -> None:
        self._real_path = real_path
        self._encoding = encoding
        self._jobs = jobs

    def checks(self, info: PathInfo) -> bool:  # noqa: ARG002  part of the protocol
        """Hold every one to it."""
        return True

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[StageNar]:
        """Stage for as long as the block runs; then the threads are told to stop, and waited for."""
        is_stopped = threading.Event()
        pool = ThreadPoolExecutor(self._jobs, thread_name_prefix="stage")
        loop = asyncio.get_running_loop()

        def begin(info: PathInfo) -> "asyncio.Future[StagedNar]":
            staging = loop.run_in_executor(
                pool, stage, info, self._real_path(info), folder, self._encoding, is_stopped.is_set
            )
            # Who waited for it may be gone when it fails, and then nobody is to be told.
            staging.add_done_callback(lambda done: done.cancelled() or done.exception())
            return staging

        try:
            yield begin
        finally:
            is_stopped.set()
            pool.shutdown(cancel_futures=True)


def is_large(info: PathInfo | NarInfo) -> bool:
    """Tell whether it is staged in a file."""
    return info.nar_size >= LARGE_NAR_BYTES


def stage(
    info: PathInfo,
    real_path: Path,
    folder: Path,
    encoding: NarEncoding,
    is_stopped: Callable[[], bool],
) -> StagedNar:
    """Dump and compress a store object; blocks.

    Args:
        info: what the store says of it.
        real_path: where its files are.
        folder: for the file of a large one.
        encoding: how to compress.
        is_stopped: asked now and then.

    Raises:
        StoreError: its files are not what the store says, or cannot be read: it changed under us, or is
            corrupt; or it is over the limit of the registry.
        StagingFolderError: the folder is full.
        StagingStoppedError: ``is_stopped``.
    """
    if not is_large(info):
        return _stage(info, real_path, Sink(io.BytesIO()), encoding, is_stopped)
    path = folder / f"{info.store_path.hash_part}.nar"
    try:
        file = path.open("xb")
    except OSError as error:
        raise folder_error(folder, error) from None
    try:
        with file:
            return _stage(info, real_path, Sink(file), encoding, is_stopped)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):  # closing a file writes what is left
            raise folder_error(folder, error) from None
        raise


def _stage(
    info: PathInfo,
    real_path: Path,
    sink: "Sink",
    encoding: NarEncoding,
    is_stopped: Callable[[], bool],
) -> StagedNar:
    def keep_going() -> None:
        if is_stopped():
            raise StagingStoppedError(f"{info.store_path}: nobody wants it any more")
        check_size(info.store_path, encoding.max_blob_bytes, sink.size)

    compressor = make_compressor(encoding, is_large=is_large(info))
    try:
        for chunk in _checked(info, dump(real_path, use_case_hack=sys.platform == "darwin")):
            for piece in compressor.compress(chunk):
                sink.write(piece)
            keep_going()
        for piece in compressor.finish():
            sink.write(piece)
            keep_going()
        digest = Digest(sink.hasher.hexdigest())
        narinfo = _narinfo(info, encoding, digest, sink.size)
    except OSError as error:
        name = f"{os.fsdecode(error.filename)} " if error.filename else ""
        raise StoreError(_plain(f"{info.store_path}: {name}cannot be read: {error.strerror}")) from None
    except FormatError as error:
        raise StoreError(_plain(f"{info.store_path}: {error}")) from None
    return StagedNar(narinfo, digest, sink.size, sink.content)


def _checked(info: PathInfo, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Pass a NAR on, and fail at its end, or where it should have ended, if it is another one."""
    hasher, size = hashlib.sha256(), 0
    for chunk in chunks:
        hasher.update(chunk)
        size += len(chunk)
        if size > info.nar_size:
            break  # the rest may be of any size, and nobody made room for it
        yield chunk
    if (NixHash(hasher.digest()), size) != (info.nar_hash, info.nar_size):
        raise StoreError(
            f"{info.store_path}: its files do not match what the store recorded ({info.nar_hash}): changed "
            "or damaged; check it with nix-store --verify-path, and repair it with nix-store --repair-path"
        )


def check_size(store_path: StorePath, max_blob_bytes: int | None, size: int) -> None:
    """Make sure that the registry takes so many bytes as one blob.

    Raises:
        StoreError: it does not.
    """
    if max_blob_bytes is not None and size > max_blob_bytes:
        raise StoreError(
            f"{store_path}: over {counted(max_blob_bytes, 'byte')} even compressed, which is more than the "
            "registry takes as one blob; split it, compress it more, or keep it out of the cache"
        )


class Sink:
    """Hashes and counts what it writes, to memory or to a file.

    Args:
        file: an empty one.

    Attributes:
        hasher: of all that was written.
        size: bytes that were written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.hasher = hashlib.sha256()
        self.size = 0

    @property
    def content(self) -> bytes | Path:
        """What was written, or the file that holds it."""
        return self._file.getvalue() if isinstance(self._file, io.BytesIO) else Path(self._file.name)

    def write(self, piece: bytes) -> None:
        """Write.

        Raises:
            StagingFolderError: the folder is full.
        """
        self.hasher.update(piece)
        self.size += len(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise folder_error(Path(self._file.name).parent, error) from None


def _narinfo(info: PathInfo, encoding: NarEncoding, digest: Digest, size: int) -> NarInfo:
    return NarInfo(
        store_path=info.store_path,
        url=str(NarUrl(digest, suffix=SUFFIXES[encoding.compression])),
        compression=encoding.compression,
        nar_hash=info.nar_hash,
        nar_size=info.nar_size,
        file_hash=NixHash(bytes.fromhex(digest.hex)),
        file_size=size,
        references=info.references,
        deriver=info.deriver,
        sigs=info.sigs,
        ca=info.ca,
    )


def folder_error(folder: Path, error: OSError) -> StagingFolderError:
    """Say why nothing can be staged in a folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StagingFolderError(f"{folder}: no space left to stage NARs in; set TMPDIR to a larger disk")
    return StagingFolderError(f"{folder}: NARs cannot be staged there: {error.strerror}; set TMPDIR")


def _plain(text: str) -> str:
    """Make one line of text that has the names of files in it: those are any bytes."""
    return text.encode(errors="backslashreplace").decode().replace("\n", "\\n")
