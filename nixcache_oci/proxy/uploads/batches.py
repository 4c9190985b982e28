"""Publishing what is in the spool, in batches: many paths make one segment.

What was published leaves the spool when the proxy's own index has it; what could not be published stays, and
is tried again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.nar_url import MAX_PACKED_NAR_BYTES
from nixcache_oci.errors import Error
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.uploads.interface import Publish
from nixcache_oci.proxy.uploads.sent_before import SentBefore
from nixcache_oci.proxy.uploads.spool import Spool
from nixcache_oci.proxy.uploads.spooled import SpooledCache, SpooledPath

_log = logging.getLogger(__name__)

BATCH_BYTES: Final = 512 * 1024 * 1024
BATCH_SECONDS: Final = 60.0
"""A batch is published at this size or age, also while more comes."""

_FIRST_RETRY_SECONDS: Final = 2.0
_MOST_RETRY_SECONDS: Final = 900.0
_SWEEP_SECONDS: Final = 600.0


class PublishedIndex(Protocol):
    """The proxy's own index."""

    catalog: Catalog | None

    async def refresh(self, *, thoroughly: bool) -> None:
        """Read the repository now."""


class Batches:
    """Publishes what is in a spool while ``run`` runs.

    Attributes:
        error: one line: why the last attempt failed; None if it did not.
        published: number of paths since the start.
        failed: why paths are still in the spool that were tried.
    """

    def __init__(
        self,
        spool: Spool,
        sent_before: SentBefore,
        index: PublishedIndex,
        publish: Publish,
        quiet_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.error: str | None = None
        self.published = 0
        self.failed: Mapping[HashPart, str] = {}
        self._spool = spool
        self._sent_before = sent_before
        self._index = index
        self._publish = publish
        self._quiet_seconds = quiet_seconds
        self._clock = clock
        self._came = asyncio.Event()
        self._first_at: float | None = clock() if spool.paths or spool.signed else None
        self._last_at = -quiet_seconds
        self._new_bytes = 0
        self._failures = 0
        self._retry_at: float | None = None

    def note(self, size: int) -> None:
        """Note that a path came, with a NAR of so many bytes."""
        now = self._clock()
        self._last_at = now
        self._new_bytes += size
        if self._first_at is None:
            self._first_at = now
        self._came.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            pause = self._pause()
            if pause > 0:
                self._came.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(pause, _SWEEP_SECONDS)):
                        await self._came.wait()
                if pause > _SWEEP_SECONDS:
                    await self._sweep()
                continue
            await self._publish_all()

    def _pause(self) -> float:
        """Return the seconds until a batch is due, if nothing else comes."""
        now = self._clock()
        dues = [self._retry_at - now] if self._retry_at is not None else []
        if self._first_at is not None and self._new_bytes >= BATCH_BYTES:
            due = 0.0
        elif self._first_at is not None:
            due = min(self._last_at + self._quiet_seconds, self._first_at + BATCH_SECONDS) - now
        else:
            return min(dues, default=2 * _SWEEP_SECONDS)
        # What fails for all is not tried more often because more comes.
        return max(due, dues[0]) if dues and self.error is not None else min([due, *dues])

    async def _publish_all(self) -> None:
        paths, signed = list(self._spool.paths.values()), list(self._spool.signed.values())
        self._first_at, self._new_bytes = None, 0
        failed: dict[HashPart, str] = {}
        try:
            if paths:
                failed |= await self._publish_some(self._spool.paths, _parts(paths), has_nars=True)
            if signed:
                failed |= await self._publish_some(self._spool.signed, _parts(signed), has_nars=False)
            await self._index.refresh(thoroughly=True)
            failed |= await self._settle([*paths, *signed], failed)
        except (Error, OSError) as error:
            self._fail(str(error))
            return
        except Exception as error:  # noqa: BLE001  # the next batch must come
            _log.exception("unexpected error")
            self._fail(str(error) or type(error).__name__)
            return
        self.failed, self.error = failed, None
        for reason in list(failed.values())[:1]:
            fields = {"count": len(failed), "first": reason}
            _log.warning("uploads not published yet", extra={"fields": fields})
        self._failures = self._failures + 1 if failed else 0
        self._retry_at = self._clock() + self._retry_seconds() if failed else None

    async def _publish_some(
        self, found: Mapping[HashPart, SpooledPath], parts: Sequence[HashPart], *, has_nars: bool
    ) -> Mapping[HashPart, str]:
        cache = SpooledCache(found, self._spool.open_nar)
        return await self._publish(cache, parts, has_nars)

    async def _settle(
        self, tried: Iterable[SpooledPath], failed: Mapping[HashPart, str]
    ) -> dict[HashPart, str]:
        """Remove what the index has from the spool; returns why others stay."""
        catalog = self._index.catalog
        unseen: dict[HashPart, str] = {}
        done: list[SpooledPath] = []
        for path in tried:
            part = path.hash_part
            if part in failed:
                continue
            text = catalog.find(part) if catalog is not None and catalog.is_kept(part) else None
            if text is None or not _has_signatures(text, path.narinfo):
                unseen[part] = f"{path.narinfo.store_path}: published, but not seen in the cache's index yet"
                continue
            if path.nar is not None and path.nar.measured.file_size <= MAX_PACKED_NAR_BYTES:
                self._sent_before.add(path.nar.hex, part)
            done.append(path)
        try:
            await asyncio.to_thread(self._sent_before.save)
        except OSError as error:
            # A disk that is full has space again when these paths are gone; the next batch saves all.
            _log.warning("old URLs of NARs not saved", extra={"fields": {"error": str(error)}})
        await self._spool.remove(done)
        self.published += len(done)
        if done:
            _log.info("uploads published", extra={"fields": {"paths": len(done)}})
        return unseen

    def _fail(self, reason: str) -> None:
        self._failures += 1
        self.error = reason
        pause = self._retry_seconds()
        self._retry_at = self._clock() + pause
        fields = {"error": reason, "retry_seconds": round(pause), "paths": len(self._spool.paths)}
        _log.warning("uploads not published", extra={"fields": fields})

    def _retry_seconds(self) -> float:
        return float(min(_FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 10), _MOST_RETRY_SECONDS))

    async def _sweep(self) -> None:
        try:
            await self._spool.drop_old_orphans()
        except OSError as error:
            _log.warning("spool not swept", extra={"fields": {"error": str(error)}})


def _parts(paths: Iterable[SpooledPath]) -> list[HashPart]:
    return [path.hash_part for path in paths]


def _has_signatures(listed: bytes, narinfo: NarInfo) -> bool:
    """Tell whether what is listed has the signatures of an upload, or is another build of it."""
    known = NarInfo.parse(listed)
    return known.nar_hash != narinfo.nar_hash or set(narinfo.sigs) <= set(known.sigs)
