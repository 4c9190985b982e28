"""Exports a cache as plain files, which any web server, or ``file://``, serves to Nix.

These are ``nix-cache-info``, one ``.narinfo`` per path, and ``nar/``. A narinfo is written after its NAR, and
each file atomically: what a killed run leaves is valid, and the next run continues. Source: Nix manual,
"Binary Cache Store".
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, SUFFIXES, NarUrl
from nixcache_oci.cache.parallel import run_all, run_in_thread
from nixcache_oci.cache.progress import Progress, Stage
from nixcache_oci.clients.binary_cache.source import CACHE_INFO, MAX_NARINFO_BYTES
from nixcache_oci.clients.durable_file import remove_unfinished, unfinished_name, write_file
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.clients.rooted_path import RootedPath, WrongKindError
from nixcache_oci.errors import DigestError, Error, FormatError, RegistryError
from nixcache_oci.maintenance.blob_check import stream_blob
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest

_BLOBS_AT_ONCE: Final = 4


@dataclass(slots=True)
class Exported:
    """What a run did."""

    written: int = 0  # number of paths that were written
    present: int = 0  # number of paths that were there already
    reasons: dict[str, str] = field(default_factory=dict)  # why each other path failed; each was reported

    @property
    def failed(self) -> int:
        """Number of paths that failed."""
        return len(self.reasons)


class Export:
    """Writes a cache into a folder, which need not exist; tells the progress each path that fails."""

    def __init__(self, repository: Repository, folder: Path, priority: int, progress: Progress) -> None:
        self._repository = repository
        self._folder = RootedPath(folder)
        self._nars = self._folder / "nar"
        self._priority = priority
        self._progress = progress
        self._stage: Stage
        self._done = Exported()

    async def run(self, inventory: Inventory) -> Exported:
        """Write all; Error if the folder or the repository fails, or there are paths of several stores."""
        served = list(_served(inventory))
        store_dirs = {narinfo.store_path.store_dir for narinfo in served}
        if len(store_dirs) > 1:
            raise Error(f"{self._repository.name}: paths of several stores: {', '.join(sorted(store_dirs))}")
        try:
            await asyncio.to_thread(self._prepare, next(iter(store_dirs), "/nix/store"))
            by_blob: defaultdict[Digest, list[NarInfo]] = defaultdict(list)
            for narinfo in served:
                if self._is_there(narinfo):
                    self._done.present += 1
                else:
                    by_blob[NarUrl.parse(narinfo.url).blob].append(narinfo)
            wanted = [narinfo for narinfos in by_blob.values() for narinfo in narinfos]
            with self._progress.stage("exporting", "path", len(wanted), _size_of(wanted)) as self._stage:
                await run_all(
                    (self._write_blob(blob, narinfos) for blob, narinfos in by_blob.items()), _BLOBS_AT_ONCE
                )
        except WrongKindError as error:
            raise Error(str(error)) from None
        except OSError as error:
            raise Error(f"{self._folder}: {error.strerror or error}") from None
        return self._done

    def _prepare(self, store_dir: str) -> None:
        self._nars.make_folder()
        remove_unfinished(self._folder)
        remove_unfinished(self._nars)
        info = f"StoreDir: {store_dir}\nWantMassQuery: 1\nPriority: {self._priority}\n"
        write_file(self._folder / CACHE_INFO, [info.encode()], self._folder)

    def _is_there(self, narinfo: NarInfo) -> bool:
        """Tell whether an earlier run wrote the same narinfo and its NAR."""
        # Anything else in its place is replaced.
        with suppress(FileNotFoundError, WrongKindError, FormatError, ValueError):
            there = NarInfo.parse(self._narinfo_path(narinfo).read_bytes(MAX_NARINFO_BYTES))
            lies_elsewhere = replace(
                there, url=narinfo.url, file_hash=narinfo.file_hash, file_size=narinfo.file_size
            )
            return lies_elsewhere == narinfo and self._path_of(there).stat() is not None
        return False

    async def _write_blob(self, blob: Digest, narinfos: Sequence[NarInfo]) -> None:
        """Write all NARs of one blob, and report those that fail."""
        try:
            if all(NarUrl.parse(narinfo.url).offset is not None for narinfo in narinfos):
                content = await read_blob(self._repository, blob, MAX_PACK_BYTES)
                self._stage.advance(size=_size_of(narinfos) or 0)
                await run_in_thread(self._write_slices, bytes(content), narinfos)
            else:
                await self._write_stream(blob, narinfos)
        except (DigestError, FormatError, RegistryError) as error:
            await raise_unless_damage(self._repository, error)
            for narinfo in narinfos:
                self._fail(narinfo, str(error))

    def _write_slices(self, content: bytes, narinfos: Sequence[NarInfo]) -> None:
        for narinfo in narinfos:
            url = NarUrl.parse(narinfo.url)
            start = url.offset or 0
            nar = content[start : start + (url.length or 0)]
            file_hash = NixHash(hashlib.sha256(nar).digest())
            if len(nar) != url.length or narinfo.file_hash not in (None, file_hash):
                self._fail(narinfo, "its slice of the pack does not match FileHash")
                continue
            named = _named(narinfo, file_hash, len(nar))
            write_file(self._path_of(named), [nar], self._nars)
            self._write_narinfo(named)

    async def _write_stream(self, blob: Digest, narinfos: Sequence[NarInfo]) -> None:
        unfinished = self._nars / unfinished_name()
        try:
            with unfinished.create() as file:
                size = await stream_blob(self._repository, blob, file.write, self._stage)
            file_hash = NixHash(bytes.fromhex(blob.hex))
            named = [_named(narinfo, file_hash, size) for narinfo in narinfos]
            for narinfo in named:
                target = self._path_of(narinfo)
                if target.stat() is None:
                    target.hardlink_to(unfinished)
                self._write_narinfo(narinfo)
        finally:
            unfinished.unlink(missing_ok=True)

    def _write_narinfo(self, narinfo: NarInfo) -> None:
        write_file(self._narinfo_path(narinfo), [narinfo.render().encode()], self._folder)
        self._done.written += 1
        self._stage.advance(1)

    def _path_of(self, narinfo: NarInfo) -> RootedPath:
        return self._folder.joinpath(*narinfo.url.split("/"))

    def _narinfo_path(self, narinfo: NarInfo) -> RootedPath:
        return self._folder / f"{narinfo.store_path.hash_part}.narinfo"

    def _fail(self, narinfo: NarInfo, reason: str) -> None:
        self._done.reasons[str(narinfo.store_path)] = reason
        self._progress.warn(f"{narinfo.store_path}: {reason}")


def _served(inventory: Inventory) -> Iterator[NarInfo]:
    """Yield what clients get: one variant of each path."""
    catalog = inventory.tables.catalog(())
    parts = dict.fromkeys(entry.narinfo.store_path.hash_part for entry in inventory.entries())
    for part in parts:
        text = catalog.find(part)
        if text is not None:
            yield NarInfo.parse(text)


def _size_of(narinfos: Iterable[NarInfo]) -> int | None:
    """Add up the sizes of their files; None if one is unknown."""
    sizes = {narinfo.url: narinfo.file_size for narinfo in narinfos}
    known = [size for size in sizes.values() if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _named(narinfo: NarInfo, file_hash: NixHash, size: int) -> NarInfo:
    """Name the file by its content, as Nix itself does."""
    suffix = SUFFIXES[narinfo.compression]
    url = f"nar/{str(file_hash).partition(':')[2]}.nar{suffix}"
    return replace(narinfo, url=url, file_hash=file_hash, file_size=size)
