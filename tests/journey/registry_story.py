"""The whole journey of a cache at one registry, with the parts that the commands put together."""

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.progress import SILENT
from nixcache_oci.cache.record import PinRecord, PublishRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_set import read_tables
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.cli.compose import open_remover, open_repository
from nixcache_oci.clients.repository import Repository, has_manifest
from nixcache_oci.clients.resume import open_resuming
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.maintenance.cache_mirror import Mirror
from nixcache_oci.maintenance.gc.collect import carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.maintenance.pinning import Relisted, write_pinning
from nixcache_oci.maintenance.verifier import Verifier
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference
from tests.support.ghcr import GhcrDouble
from tests.support.interleaving import no_sleep
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject, publish

DAY: Final = timedelta(days=1)
MIB: Final = 1024 * 1024
KEPT, PINNED, *DYING = (store_object(seed) for seed in ("kept", "pinned", *"abcde"))


class Place:
    """A repository at a registry, as the commands open it."""

    def __init__(self, host: str, repo: str, image: str = "nix-cache", token: str = "") -> None:
        self.reference = RegistryReference.of(host, repo, image)
        self.name = self.reference.repository
        self._environment = {"NIXCACHE_TOKEN": f"octocat:{token}"} if token else {}

    @asynccontextmanager
    async def opened(self, count: int = 1) -> AsyncIterator[list[Repository]]:
        clients = [open_repository(self.reference, self._environment, push=True) for _ in range(count)]
        try:
            yield clients
        finally:
            await asyncio.gather(*(client.close() for client in clients))

    async def delete(self, tag: str) -> None:
        """Lose a tag with its manifest, as by a retention rule."""
        remover = open_remover(self.reference, self._environment)
        async with self.opened() as [client]:
            await remover.remove(await client.resolve(tag))
            await remover.close()

    async def holds(self, manifest: Digest) -> bool:
        async with self.opened() as [client]:
            return await has_manifest(client, manifest)

    async def collect(self, at: datetime) -> None:
        remover = open_remover(self.reference, self._environment)
        async with self.opened() as [client]:
            try:
                prepared = await prepare_gc(client, remover, GcOptions(scope_ttl=None), clock=lambda: at)
                await carry_out_gc(client, remover, prepared, force=True, clock=lambda: at, sleep=no_sleep)
            finally:
                await remover.close()


async def run_journey(
    place: Place,
    back: Place,
    large: Path,
    folder: Path,
    *,
    ghcr: GhcrDouble | None = None,
) -> None:
    """Push, six that publish at once, ranges and cuts, a pin, gc to the end, verify, repair, mirrors.

    Args:
        place: where; empty.
        back: another one at the same registry, which a mirror comes back to.
        large: a file that is pushed as a blob.
        folder: for indexes.
        ghcr: breaks connections, and loses the index; None for a real registry.
    """
    async with place.opened() as [client]:
        record = PublishRecord("main", "1", CREATED, (("kept", KEPT.narinfo.store_path),))
        await publish(client, [KEPT], records=[record])
        await push_and_fetch(client, large, ghcr)
    dying = await publish_at_once(place)
    await pin(place, PINNED.narinfo.store_path)
    await check(place, folder / "all", [KEPT, PINNED, *DYING])
    for days in range(31, 7 * 31, 31):
        await place.collect(CREATED + days * DAY)
    assert not [manifest for manifest in dying if await place.holds(manifest)]
    await check(place, folder / "rest", [KEPT, PINNED])
    if ghcr is not None:
        ghcr.delete_manifest(place.name, INDEX_TAG)
    else:
        await place.delete(INDEX_TAG)
    async with place.opened() as [client]:
        await list_segments(client, [], sleep=no_sleep)
    await check(place, folder / "found", [KEPT, PINNED])
    with GhcrDouble() as other:
        elsewhere = Place(other.host, "octocat/hello", token=other.token)
        for source, destination in ((place, elsewhere), (elsewhere, back)):
            await mirror(source, destination)
            await check(destination, folder / destination.name, [KEPT, PINNED])


def write_large(path: Path, size: int) -> Path:
    """Write so many MiB that do not compress."""
    generator = random.Random(size)
    with path.open("wb") as file:
        for _ in range(size):
            file.write(generator.randbytes(MIB))
    return path


async def push_and_fetch(client: Repository, large: Path, ghcr: GhcrDouble | None) -> None:
    """A large blob goes up although connections break, and comes down although three do."""
    content = await asyncio.to_thread(large.read_bytes)
    digest = Digest(hashlib.sha256(content).hexdigest())
    if ghcr is not None:
        ghcr.fault(r"(PATCH|PUT) .*/uploads/", "cut_request", skip=1, after=5 * MIB, times=2)
        for part in (1, 2, 3):
            at = "storage-get" if ghcr.blob_get_redirects else "blob-get"
            ghcr.fault(at, "cut", after=len(content) * part // 4)
    await client.push_blob(digest, large)
    whole = hashlib.sha256()
    async with open_resuming(client, digest, sleep=no_sleep) as blob:
        async for chunk in blob.chunks:
            whole.update(chunk)
    assert whole.hexdigest() == digest.hex
    start, end = len(content) - 3 * MIB, len(content) - MIB
    async with client.open_blob(digest, start, end) as blob:
        assert b"".join([chunk async for chunk in blob.chunks]) == content[start:end]


async def publish_at_once(place: Place) -> set[Digest]:
    """Six publish; none loses another's segment. Returns those that no root reaches."""
    things = [PINNED, *DYING]
    async with place.opened(len(things)) as clients:

        async def run(client: Repository, thing: StoreObject, number: int) -> Segment:
            created = CREATED + number * timedelta(seconds=1)
            segment = await publish(client, [thing], created=created, is_listed=False)
            await list_segments(client, [segment], clock=lambda: created, sleep=no_sleep)
            return segment

        jobs = (
            run(client, thing, at) for at, (client, thing) in enumerate(zip(clients, things, strict=True))
        )
        segments = await asyncio.gather(*jobs)
        assert {one.manifest for one in segments} <= {
            one.manifest for one in (await read_listing(clients[0])).segments
        }
    return {one.manifest for one in segments[1:]}


async def pin(place: Place, path: StorePath) -> None:
    async with place.opened() as [client]:
        await write_pinning(
            client, [PinRecord("release", path, CREATED, "forever")], Relisted(), SegmentOptions()
        )


async def mirror(source: Place, destination: Place) -> None:
    async with source.opened() as [one], destination.opened() as [other]:
        await Mirror(one, other, SILENT).run()


async def check(place: Place, folder: Path, things: Iterable[StoreObject]) -> None:
    """Verify every byte; the cache lists exactly these things, and each can be fetched."""
    upstreams = Upstreams([])
    async with place.opened() as [client]:
        listing = await read_listing(client)
        inventory = Inventory(await read_tables(client, IndexFolder(folder, client.name), listing))
        try:
            verifier = Verifier(client, upstreams, (), with_content=True)
            assert await verifier.run(inventory) == []
        finally:
            await upstreams.close()
        found = inventory.contents().paths
        assert {str(one.store_path) for one in found} == {str(one.narinfo.store_path) for one in things}
        for thing in things:
            [entry, *_] = inventory.find(thing.narinfo.store_path.hash_part)
            url = NarUrl.parse(entry.narinfo.url)
            async with client.open_blob(url.blob, 0, 1) as blob:
                assert len(b"".join([chunk async for chunk in blob.chunks])) == 1
