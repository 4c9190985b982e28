"""Taking narinfos: each is held to its route, its NAR, its references and the rules of signatures.

Whoever has an answer 200 has the path in the cache, in the end: what the cache or the spool has already is
not taken again, except for signatures.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from typing import Final
from weakref import WeakValueDictionary

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.nar_url import SUFFIXES
from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.errors import FormatError, UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, fingerprint, is_unsigned
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.nix.variants import is_accepted
from nixcache_oci.proxy.signature_union import Finder
from nixcache_oci.proxy.uploads.interface import UploadRefusedError, UploadSettings
from nixcache_oci.proxy.uploads.spool import Spool
from nixcache_oci.proxy.uploads.spooled import SpooledNar

MOST_SIGNATURES: Final = 64
"""Of one path, as of one that is published."""

_MOST_REMEMBERED: Final = 16_384  # references that upstreams have


class Receiver:
    """Takes narinfos into the spool.

    Args:
        spool: where they go.
        settings: of uploads.
        store_dir: of all paths.
        public_keys: one of which has to sign every path, if there are any.
        catalog: returns what the cache lists, None while that is not known.
        upstreams: which may have what an upload refers to.
    """

    def __init__(
        self,
        spool: Spool,
        settings: UploadSettings,
        store_dir: str,
        public_keys: tuple[PublicKey, ...],
        catalog: Callable[[], Catalog | None],
        upstreams: Finder,
    ) -> None:
        self._spool = spool
        self._settings = settings
        self._store_dir = store_dir
        self._public_keys = public_keys
        self._catalog = catalog
        self._upstreams = upstreams
        self._upstream_has: BoundedCache[HashPart, bool] = BoundedCache(_MOST_REMEMBERED)
        self._locks: WeakValueDictionary[HashPart, asyncio.Lock] = WeakValueDictionary()

    async def take(self, hash_part: HashPart, text: bytes) -> bool:
        """Take a narinfo; returns whether there is anything to publish.

        Raises UploadRefusedError if it is wrong, and says why.
        """
        try:
            narinfo = NarInfo.parse(text)
        except FormatError as error:
            raise UploadRefusedError(str(error)) from None
        if narinfo.store_path.hash_part != hash_part:
            raise UploadRefusedError("the narinfo is about another path than its URL")
        if narinfo.store_path.store_dir != self._store_dir:
            raise UploadRefusedError(f"this cache is for paths in {self._store_dir}")
        lock = self._locks.setdefault(hash_part, asyncio.Lock())
        async with lock:  # two clients may send the same path at once
            return await self._take(narinfo)

    async def _take(self, narinfo: NarInfo) -> bool:
        part = narinfo.store_path.hash_part
        catalog = self._catalog()
        if catalog is None:
            raise UploadRefusedError("what the cache has is not known yet: try again", HTTPStatus.FORBIDDEN)
        spooled = self._spool.paths.get(part)
        if spooled is not None and spooled.nar is not None:
            merged = self._merge(spooled.narinfo, narinfo)
            if merged is not None:
                await self._spool.add_path(merged, spooled.nar)
            return merged is not None
        listed = catalog.find(part) if catalog.is_kept(part) else None
        if listed is not None:
            known = self._spool.signed.get(part)
            merged = self._merge(known.narinfo if known is not None else NarInfo.parse(listed), narinfo)
            if merged is not None:
                await self._spool.add_signatures(merged)
            return merged is not None
        nar = self._find_nar(narinfo)
        await self._check_references(narinfo, catalog)
        await self._spool.add_path(self._complete(narinfo, nar), nar)
        return True

    def _merge(self, known: NarInfo, narinfo: NarInfo) -> NarInfo | None:
        """Add signatures; None if there are no new ones, or the known path is another build of it."""
        new = tuple(sig for sig in narinfo.sigs if sig not in known.sigs)
        if not new or fingerprint(known) != fingerprint(narinfo):
            return None
        if len(known.sigs) + len(new) > MOST_SIGNATURES:
            raise UploadRefusedError(f"the path has over {MOST_SIGNATURES} signatures")
        return replace(known, sigs=(*known.sigs, *new))

    def _find_nar(self, narinfo: NarInfo) -> SpooledNar:
        if narinfo.file_hash is None:
            raise UploadRefusedError("the narinfo has no FileHash")
        nar = self._spool.find_nar(narinfo.file_hash.digest_hex)
        if nar is None:
            raise UploadRefusedError(
                "its NAR was not uploaded, or is published or forgotten: upload both again"
            )
        found, suffix = nar.measured, SUFFIXES[narinfo.compression]
        for name, is_right in (
            ("Compression", suffix == nar.suffix),
            ("FileSize", narinfo.file_size in (None, found.file_size)),
            ("NarHash", narinfo.nar_hash == found.nar_hash),
            ("NarSize", narinfo.nar_size == found.nar_size),
        ):
            if not is_right:
                raise UploadRefusedError(f"the NAR that was uploaded has another {name}")
        return nar

    def _complete(self, narinfo: NarInfo, nar: SpooledNar) -> NarInfo:
        """Point it to its NAR, and sign it."""
        found = nar.measured
        narinfo = replace(narinfo, url=nar.url, file_hash=found.file_hash, file_size=found.file_size)
        if is_unsigned(narinfo) and not self._settings.is_signing:
            raise UploadRefusedError(
                "the path is not signed, and this cache has no key to sign it with: use nix store sign, or "
                "add ?secret-key= to the URL"
            )
        signed = self._settings.sign(narinfo)
        if self._public_keys and not is_accepted(signed, self._public_keys):
            raise UploadRefusedError("none of the keys in NIXCACHE_PUBLIC_KEYS signed the path")
        return signed

    async def _check_references(self, narinfo: NarInfo, catalog: Catalog) -> None:
        for base_name in narinfo.references:
            part = HashPart.of(base_name)
            if base_name == narinfo.store_path.base_name or part in self._spool.paths:
                continue
            if catalog.is_kept(part) or self._upstream_has.get(part):
                continue
            try:
                is_there = await self._upstreams.find(part) is not None
            except UpstreamError:
                raise UploadRefusedError(
                    f"it refers to {base_name}, and no upstream cache could say if it has that: try again"
                ) from None
            if not is_there and part not in self._spool.paths:
                why = "which is about to be deleted" if catalog.find(part) else "which nobody has"
                raise UploadRefusedError(f"it refers to {base_name}, {why}: upload that first")
            self._upstream_has.put(part, True)
