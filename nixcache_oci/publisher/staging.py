"""Staging: a store object becomes a compressed NAR, checked against what the store says of it.

Everything here blocks, and belongs on a thread. Small NARs stay in memory, large ones go to a file.
"""

import errno
import hashlib
import io
import lzma
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, Protocol

import zstandard

from nixcache_oci.cache.nar_url import SUFFIXES, NarUrl
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import Error, FormatError, StoreError, UsageError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest

Compression = Literal["zstd", "xz", "none"]

COMPRESSIONS: Final[dict[Compression, tuple[range, int]]] = {
    "zstd": (range(1, 20), 3),
    "xz": (range(10), 6),
    "none": (range(1), 0),
}
"""The levels that each takes, and the usual one."""

LARGE_NAR_BYTES: Final = 4 * 1024 * 1024
"""From here on, a NAR is staged in a file, and compressed by all cores."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How NARs are compressed.

    Attributes:
        compression: as narinfos call it.
        level: of the compression; None for the usual one.
        max_blob_bytes: what the registry takes at most as one blob; None for any size.

    Raises:
        UsageError: there is no such level.
    """

    compression: Compression = "zstd"
    level: int | None = None
    max_blob_bytes: int | None = None

    def __post_init__(self) -> None:
        allowed, _ = COMPRESSIONS[self.compression]
        if self.level is not None and self.level not in allowed:
            raise UsageError(
                f"--level {self.level}: {self.compression} takes {allowed[0]} to {allowed[-1]}"
                if len(allowed) > 1
                else f"--level {self.level}: without compression there are no levels"
            )

    @property
    def used_level(self) -> int:
        """The level that is used."""
        return COMPRESSIONS[self.compression][1] if self.level is None else self.level


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

    def discard(self) -> None:
        """Remove the file."""
        if isinstance(self.content, Path):
            self.content.unlink(missing_ok=True)


class StagingFolderError(Error):
    """The folder for staged NARs is full, or cannot be written: nothing more can be staged."""


class StagingStoppedError(Error):
    """Nobody wants it any more."""


def is_large(info: PathInfo) -> bool:
    """Tell whether it is staged in a file."""
    return info.nar_size >= LARGE_NAR_BYTES


def stage(
    info: PathInfo, real_path: Path, folder: Path, packing: Packing, is_stopped: Callable[[], bool]
) -> StagedNar:
    """Dump and compress a store object.

    Args:
        info: what the store says of it.
        real_path: where its files are.
        folder: for the file of a large one.
        packing: how to compress.
        is_stopped: asked now and then.

    Raises:
        StoreError: its files are not what the store says, or cannot be read: it changed under us, or is
            corrupt; or it is over the limit of the registry.
        StagingFolderError: the folder is full.
        StagingStoppedError: ``is_stopped``.
    """
    if not is_large(info):
        memory = _Sink(io.BytesIO(), folder)
        return _stage(info, real_path, memory, packing, is_stopped)
    path = folder / f"{info.store_path.hash_part}.nar"
    try:
        with _open(path) as file:
            staged = _stage(info, real_path, _Sink(file, path), packing, is_stopped)
            file.flush()
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _folder_error(path, error) from None
        raise
    return staged


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("xb")
    except OSError as error:
        raise _folder_error(path, error) from None


def _stage(
    info: PathInfo, real_path: Path, sink: "_Sink", packing: Packing, is_stopped: Callable[[], bool]
) -> StagedNar:
    hasher, size = hashlib.sha256(), 0
    compressor = _compressor(packing, is_large=is_large(info))
    try:
        for chunk in dump(real_path, use_case_hack=sys.platform == "darwin"):
            if is_stopped():
                raise StagingStoppedError(f"{info.store_path}: nobody wants it any more")
            hasher.update(chunk)
            size += len(chunk)
            sink.write(compressor.compress(chunk))
            _check_size(info, packing, sink.size)
        sink.write(compressor.flush())
        _check_size(info, packing, sink.size)
    except OSError as error:
        raise StoreError(f"{info.store_path}: cannot be read: {error.strerror}") from None
    except FormatError as error:
        raise StoreError(f"{info.store_path}: {error}") from None
    if (NixHash(hasher.digest()), size) != (info.nar_hash, info.nar_size):
        raise StoreError(
            f"{info.store_path}: its files are not what the store says of them ({info.nar_hash}): changed or "
            f"damaged; nix-store --verify-path tells, and nix-store --repair-path mends it"
        )
    digest = Digest(sink.hasher.hexdigest())
    return StagedNar(_narinfo(info, packing, digest, sink.size), digest, sink.size, sink.content)


def _check_size(info: PathInfo, packing: Packing, size: int) -> None:
    if packing.max_blob_bytes is not None and size > packing.max_blob_bytes:
        raise StoreError(
            f"{info.store_path}: over {packing.max_blob_bytes} bytes even compressed, which is more than the "
            "registry takes as one blob; split it, compress it more, or keep it out of the cache"
        )


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class _Sink:
    """Hashes and counts what it writes.

    Args:
        file: what is written to.
        path: where that is; a folder for what is written to memory.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path
        self.hasher = hashlib.sha256()
        self.size = 0

    @property
    def content(self) -> bytes | Path:
        return self._file.getvalue() if isinstance(self._file, io.BytesIO) else self._path

    def write(self, piece: bytes) -> None:
        self.hasher.update(piece)
        self.size += len(piece)
        try:
            self._file.write(piece)
        except OSError as error:
            raise _folder_error(self._path, error) from None


class _Uncompressed:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(packing: Packing, *, is_large: bool) -> _Compressor:
    match packing.compression:
        case "zstd":
            # Many small ones are compressed side by side already. What several threads write differs from
            # what one writes, but it does not depend on how many they are: the next run, on whatever
            # machine, finds the same blobs.
            threads = os.cpu_count() or 1 if is_large else 0
            return zstandard.ZstdCompressor(level=packing.used_level, threads=threads).compressobj()
        case "xz":
            return lzma.LZMACompressor(preset=packing.used_level)
        case "none":
            return _Uncompressed()


def _narinfo(info: PathInfo, packing: Packing, digest: Digest, size: int) -> NarInfo:
    return NarInfo(
        store_path=info.store_path,
        url=str(NarUrl(digest, suffix=SUFFIXES[packing.compression])),
        compression=packing.compression,
        nar_hash=info.nar_hash,
        nar_size=info.nar_size,
        file_hash=NixHash(bytes.fromhex(digest.hex)),
        file_size=size,
        references=info.references,
        deriver=info.deriver,
        sigs=info.sigs,
        ca=info.ca,
    )


def _folder_error(path: Path, error: OSError) -> StagingFolderError:
    folder = path.parent if path.suffix else path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StagingFolderError(f"{folder}: no space left to stage NARs in; set TMPDIR to a larger disk")
    return StagingFolderError(f"{folder}: NARs cannot be staged there: {error.strerror}; set TMPDIR")
