"""Uploads as a whole: the spool, what goes into it, and what publishes it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Final

from nixcache_oci.cache.parallel import cancel_all
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.signature_union import Finder
from nixcache_oci.proxy.uploads.batches import Batches
from nixcache_oci.proxy.uploads.interface import UploadSettings, Writers
from nixcache_oci.proxy.uploads.receiver import Receiver
from nixcache_oci.proxy.uploads.sent_before import SentBefore
from nixcache_oci.proxy.uploads.spool import Spool

_log = logging.getLogger(__name__)

_MOST_SHOWN: Final = 20


class Uploads:
    """Takes uploads; open it with ``opened``.

    Attributes:
        dropped: kinds of files that are accepted and not kept, each said once in the log.
    """

    def __init__(
        self, settings: UploadSettings, spool: Spool, sent_before: SentBefore, index: LiveIndex
    ) -> None:
        self.spool = spool
        self.settings = settings
        self.dropped: set[str] = set()
        self.receiver: Receiver
        self.batches = Batches(spool, sent_before, index, settings.publish, settings.quiet_seconds)
        self._sent_before = sent_before
        self._index = index

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: UploadSettings, index: LiveIndex) -> AsyncIterator["Uploads"]:
        """Open the spool; UsageError if its folder cannot be used."""
        async with Spool.opened(settings.folder, settings.most_bytes) as spool:
            sent_before = SentBefore(spool.folder)
            await asyncio.to_thread(sent_before.load)
            yield cls(settings, spool, sent_before, index)

    @asynccontextmanager
    async def publishing(
        self, config: ProxyConfig, public_keys: tuple[PublicKey, ...], upstreams: Finder
    ) -> AsyncIterator[None]:
        """Take narinfos, and publish in the background, while the block runs."""
        self.receiver = Receiver(
            self.spool,
            self.settings,
            config.store_dir,
            public_keys,
            lambda: self._index.catalog,
            upstreams,
        )
        running = asyncio.create_task(self.batches.run(), name="publish uploads")
        try:
            yield
        finally:
            await cancel_all([running])

    @property
    def writers(self) -> Writers:
        """Who may write."""
        return self.settings.writers

    def find(self, hash_part: HashPart) -> bytes | None:
        """Return the narinfo of a path that is not published yet."""
        path = self.spool.paths.get(hash_part)
        return path.text if path is not None else None

    def find_published(self, file_hash_hex: str) -> NarInfo | None:
        """Return what the cache lists now of a path whose NAR was uploaded with this FileHash."""
        part = self._sent_before.find(file_hash_hex)
        catalog = self._index.catalog
        text = catalog.find(part) if part is not None and catalog is not None else None
        if text is None:
            return None
        try:
            narinfo = NarInfo.parse(text)
        except FormatError:
            return None
        is_same = narinfo.file_hash is not None and narinfo.file_hash.digest_hex == file_hash_hex
        return narinfo if is_same else None

    def status(self) -> dict[str, object]:
        """Return the state, for operators."""
        failed = self.batches.failed
        return {
            "paths": len(self.spool.paths) + len(self.spool.signed),
            "bytes": self.spool.used_bytes,
            "orphans": self.spool.orphans,
            "published": self.batches.published,
            "last_error": self.batches.error,
            "failed": list(islice(failed.values(), _MOST_SHOWN)),
            "failed_count": len(failed),
        }
