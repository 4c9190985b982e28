"""Cells of those who write: a publish, a gc's look at everything, and deletions."""

from collections.abc import Sequence
from random import Random

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.clients.github.packages import GithubPackages
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.clients.registry.client import Registry, RegistryRemover
from nixcache_oci.clients.repository import Remover
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.gc.collect import prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.nix.nar import File
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publish_plan import PublishPlan
from nixcache_oci.publisher.publisher import Publisher
from tests.publisher.made_store import MadeStore
from tests.reliability.caches import NAME, names_in
from tests.reliability.observed import (
    FIRST_BACKOFF_SECONDS,
    NAR_AFTER,
    PATIENCE_SECONDS,
    STALL_SECONDS,
    Outcome,
    Surroundings,
)
from tests.support.told import Told

_LARGE_BYTES = 300_000  # a blob of its own
_SMALL_BYTES = 1_000
_READS = frozenset({"GET", "HEAD"})


_OPTIONS = PublishOptions(keys=(SecretKey.generate("machine-1"),))


class Machine:
    """Publishes out of a folder of store objects."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._made = MadeStore(around.folder / "store")
        self._store = LocalStore(Nix({}, print), "/nix/store", around.folder / "store")
        self._folder = IndexFolder(around.folder / "index", NAME)

    def add(self, seed: str) -> list[PathInfo]:
        return [
            self._made.add(f"{seed}-{size}", File(Random(f"{seed}{size}").randbytes(size)))
            for size in (_SMALL_BYTES, _LARGE_BYTES)
        ]

    async def publish(self, infos: Sequence[PathInfo], *, host: str | None = None) -> Error | None:
        """Publish as a run of its own, over another ``host:port`` where one is given."""
        client = self._around.client(push=True, host=host)
        upstreams = Upstreams([])
        told = Told(self._around.outside.texts, self._around.outside.texts)
        publisher = Publisher(client, self._store, self._folder, upstreams, _OPTIONS, told)
        try:
            published = await publisher.publish(PublishPlan(push=tuple(infos)), [])
        except Error as error:
            return error
        finally:
            await upstreams.close()
            await client.close()
        assert not published.failed
        return None


async def publisher(around: Surroundings) -> tuple[Outcome, Outcome]:
    """A publish while the fault strikes: all of it is listed, or nothing, and the next run completes it."""
    ghcr = around.ghcr
    around.steps[0].put_into(ghcr)
    before = await names_in(ghcr)
    machine = Machine(around)
    first, second = machine.add("first"), machine.add("second")
    around.arm(1, after=NAR_AFTER if around.operation == "upload-put" else 20)
    error = await machine.publish(first)
    once = Outcome("recovers") if error is None else Outcome("refuses", around.tell(error))
    around.disarm()
    if error is not None:
        _check(await names_in(ghcr), before, first)
        assert await machine.publish(first) is None
    before |= _names(first)
    assert await names_in(ghcr) == before
    around.arm(None, after=NAR_AFTER if around.operation == "upload-put" else 20)
    error = await machine.publish(second)
    forever = Outcome("does without") if error is None else Outcome("refuses", around.tell(error))
    around.disarm()
    _check(await names_in(ghcr), before, second)
    if error is not None:
        assert await machine.publish(second) is None
    assert await names_in(ghcr) == before | _names(second)
    return once, forever


def _names(infos: Sequence[PathInfo]) -> set[str]:
    return {info.store_path.base_name for info in infos}


def _check(listed: set[str], before: set[str], infos: Sequence[PathInfo]) -> None:
    assert listed in (before, before | _names(infos)), "half a publish is listed, or another's is lost"


async def gc(around: Surroundings) -> tuple[Outcome, Outcome]:
    """A gc reads everything, or decides nothing."""
    around.steps[1].put_into(around.ghcr)
    outcomes = []
    for times in (1, None):
        around.arm(times)
        error = await _prepare(around)
        good = "recovers" if times else "does without"
        outcomes.append(Outcome(good) if error is None else Outcome("refuses", around.tell(error)))
        around.disarm()
    assert await _prepare(around) is None
    assert {record.method for record in around.ghcr.requests} <= _READS
    return outcomes[0], outcomes[1]


async def _prepare(around: Surroundings) -> Error | None:
    client, remover = around.client(push=True), RegistryRemover(around.client(push=True, delete=True))
    try:
        prepared = await prepare_gc(client, remover, GcOptions())
    except Error as error:
        return error
    finally:
        await client.close()
        await remover.close()
    assert len(prepared.state.segments) == 5, "a part was taken for the whole"
    return None


async def remover(around: Surroundings) -> tuple[Outcome, Outcome]:
    """A manifest is deleted, or kept and named."""
    ghcr = around.ghcr
    ghcr.deletes = True
    around.steps[1].put_into(ghcr)
    first, second, *_ = list(ghcr.manifests(NAME))
    around.arm(1)
    once = await _try_removing(around, first, "recovers")
    around.disarm()
    assert await _remove(around, first) is None
    around.arm(None)
    forever = await _try_removing(around, second, "does without")
    around.disarm()
    assert await _remove(around, second) is None
    assert not {first, second} & ghcr.manifests(NAME).keys()
    return once, forever


async def _try_removing(around: Surroundings, manifest: Digest, good: str) -> Outcome:
    error = await _remove(around, manifest)
    is_gone = manifest not in around.ghcr.manifests(NAME)
    if error is None:
        return Outcome(good if is_gone else "takes it for gone")
    return Outcome("refuses, though it is gone" if is_gone else "refuses", around.tell(error))


async def _remove(around: Surroundings, manifest: Digest) -> Error | None:
    registry = around.client(push=True, delete=True)
    client = _remover(around, registry)
    try:
        if around.operation == "manifest-delete":
            await registry.list_tags()  # so that the fault does not meet the request that still has no token
        await client.remove(manifest)
    except Error as error:
        return error
    finally:
        await client.close()
        await registry.close()
    return None


def _remover(around: Surroundings, registry: Registry) -> Remover:
    if not around.operation.startswith("package-"):
        return RegistryRemover(registry)
    return GithubPackages(
        around.ghcr.api_url,
        around.reference,
        around.credentials,
        patience=PATIENCE_SECONDS,
        pause_seconds=0,
        stall_seconds=STALL_SECONDS,
        first_backoff_seconds=FIRST_BACKOFF_SECONDS,
    )
