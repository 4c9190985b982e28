"""Repacking: small NARs move into new packs, in closure order, when segments are merged or rewritten.

What gc and a merging publisher share. Nothing but URLs changes: each NAR keeps its compressed bytes, and each
narinfo its signatures. Source: design section 2, "Segment", and section 5, promise 5.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, NarUrl
from nixcache_oci.cache.pack import PackBuilder
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import SILENT, Stage
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.errors import DigestError, FormatError, NotFoundError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

_HELD_BYTES: Final = 4 * MAX_PACK_BYTES
_PARALLEL_REQUESTS: Final = 16


async def repack(
    repository: Repository,
    narinfos: Iterable[NarInfo],
    moving: Mapping[Digest, Descriptor],
    max_blob_bytes: int | None = None,
    stage: Stage = SILENT,
) -> tuple[list[NarInfo], dict[Digest, Descriptor]]:
    """Copy what lies in some blobs into new packs, and push these.

    Args:
        repository: has the blobs, and gets the packs.
        narinfos: each path once.
        moving: the blobs to empty, packs or small NARs.
        max_blob_bytes: of a pack; None for the format's own limit.
        stage: counts the packs' bytes.

    Returns:
        The narinfos, references first, with the URLs that they have now; and the new packs.

    Raises:
        FormatError: a blob does not hold what a narinfo says.
        DigestError: a blob does not match its digest.
        RegistryError: the repository could not answer, or refused.
    """
    staying: list[NarInfo] = []
    moved: list[NarInfo] = []
    packs: dict[Digest, Descriptor] = {}

    async def push(builder: PackBuilder) -> None:
        pack = builder.finish()
        if pack.narinfos:
            await repository.push_blob(pack.digest, pack.content)
            stage.sent(len(pack.content))
            packs[pack.digest] = Descriptor(media_type.PACK, pack.digest, len(pack.content))
            moved.extend(pack.narinfos)

    sources = _Sources(repository)
    ordered = order_by_references(narinfos)
    used = dict.fromkeys(NarUrl.parse(narinfo.url).blob for narinfo in ordered)
    await sources.read_ahead(moving[blob] for blob in used if blob in moving)
    builder = PackBuilder(max_blob_bytes=max_blob_bytes)
    for narinfo in ordered:
        url = NarUrl.parse(narinfo.url)
        if url.blob not in moving:
            staying.append(narinfo)
            continue
        content = await sources.cut_out(url)
        if not builder.add(narinfo, content):
            await push(builder)
            builder = PackBuilder(max_blob_bytes=max_blob_bytes)
            builder.add(narinfo, content)
    await push(builder)
    return order_by_references([*staying, *moved]), packs


def join_headers(headers: Iterable[TableHeader], created: datetime) -> TableHeader:
    """Make the header of a table that replaces others."""
    headers = list(headers)
    places = {header.source for header in headers}
    return TableHeader(
        created,
        source=places.pop() if len(places) == 1 else None,
        public_keys=tuple(dict.fromkeys(key for header in headers for key in header.public_keys)),
        extra=tuple(dict.fromkeys(field for header in headers for field in header.extra)),
    )


class _Sources:
    """Cuts NARs out of verified blobs; as many as four full packs stay in memory, the last used ones."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._held: OrderedDict[Digest, bytearray] = OrderedDict()

    async def read_ahead(self, blobs: Iterable[Descriptor]) -> None:
        """Read the first blobs at once, as many as stay in memory; errors are those of ``repack``."""
        first: list[Digest] = []
        size = 0
        for blob in blobs:
            size += blob.size
            if size > _HELD_BYTES:
                break
            first.append(blob.digest)
        await run_all(map(self._read, first), _PARALLEL_REQUESTS)

    async def cut_out(self, url: NarUrl) -> bytes:
        """Return the bytes of one NAR; errors are those of ``repack``."""
        if url.blob not in self._held:
            await self._read(url.blob)
        self._held.move_to_end(url.blob)
        blob = self._held[url.blob]
        if url.offset is None or url.length is None:
            return bytes(blob)
        content = bytes(blob[url.offset : url.offset + url.length])
        if len(content) != url.length:
            raise FormatError(f"pack {url.blob}: it is too short for {url}")
        return content

    async def _read(self, blob: Digest) -> None:
        try:
            content = await read_blob(self._repository, blob, MAX_PACK_BYTES)
        except (NotFoundError, DigestError, FormatError) as error:
            raise type(error)(
                f"{self._repository.name}: blob {blob} cannot be read: {error}; nixcache-oci verify"
                " --content names the paths in it"
            ) from None
        self._held[blob] = content
        while sum(map(len, self._held.values())) > _HELD_BYTES:
            self._held.popitem(last=False)
