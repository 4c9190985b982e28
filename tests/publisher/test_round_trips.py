"""How many requests of a publish wait for one another: to a distant registry, that is the time it takes.

Requests that are made beside each other are one round trip. Threads do their work at once here, so that it
is told exactly which request waits for which.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest

from nixcache_oci.cache import commit
from nixcache_oci.cache.cache_index import INDEX_TAG, CacheIndex
from nixcache_oci.cache.commit import write_index
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import Union, read_listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore, PathLike
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.maintenance.gc.collect import mark
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher import staging
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publisher import Publisher
from tests.publisher.made_store import MadeStore
from tests.publisher.migration_story import ALL, base_names, names_listed
from tests.publisher.upload_story import noise
from tests.support.interleaving import nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import publish_version1
from tests.support.told import Told

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

_SETTLING = 300  # turns of the event loop until everything that is done at once waits for its request
_OPTIONS = PublishOptions(keys=(SecretKey.generate("far-1"),))
_NIX = "nix tells the closure"

P = ParamSpec("P")
T = TypeVar("T")


class AtOnce(ThreadPoolExecutor):
    """Does the work when it is submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  whoever waits for it is told
            future.set_exception(error)
        return future


class FarRepository(ModelRepository):
    """A registry's client, as far as it waits: a blob needs an upload session, which may be opened ahead."""

    def __init__(self, storage: ModelStorage, before: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(storage, before)
        self._ahead: list[asyncio.Task[None]] = []

    @property
    def unused(self) -> int:
        return len(self._ahead)

    def prepare_push(self, count: int) -> None:
        while len(self._ahead) < count:
            self._ahead.append(asyncio.ensure_future(self._open()))

    async def push_blob(self, digest: Digest, source: bytes | Path) -> None:
        await (self._ahead.pop(0) if self._ahead else self._open())
        await super().push_blob(digest, source)

    async def _open(self) -> None:
        await self._before("open an upload")


class TellingStore(LocalStore):
    """A store that tells a closure when it was asked for one."""

    async def closure(self, paths: Iterable[PathLike]) -> list[PathInfo]:
        return await TOLD[self.real_store_dir](paths)


TOLD: dict[Path, Callable[[Iterable[PathLike]], Awaitable[list[PathInfo]]]] = {}


class Distance:
    """Holds requests until nothing else is to be done; then all of them are answered: a round trip.

    Attributes:
        trips: the requests of each.
        between: is awaited before each round trip, with its requests.
    """

    def __init__(self) -> None:
        self.trips: list[list[str]] = []
        self.between: Callable[[list[str]], Awaitable[None]] | None = None
        self._waiting: list[tuple[str, asyncio.Event]] = []

    async def pass_on(self, request: str) -> None:
        event = asyncio.Event()
        self._waiting.append((request, event))
        await event.wait()

    async def run(self, job: Awaitable[T]) -> T:
        task = asyncio.ensure_future(job)
        while True:
            for _ in range(_SETTLING):
                await asyncio.sleep(0)
            if task.done():
                return await task
            if not self._waiting:
                await asyncio.sleep(0.001)  # it pauses between two tries
                continue
            held, self._waiting = self._waiting, []
            requests = [request for request, _ in held]
            self.trips.append(requests)
            if self.between is not None:
                await self.between(requests)
            for _, event in held:
                event.set()


@dataclass
class Far:
    """A machine, and a repository that is far away."""

    storage: ModelStorage
    made: MadeStore
    folder: Path
    runs: int = 0
    scope: str = "far"

    async def push(self, infos: Sequence[PathInfo], distance: Distance) -> tuple[Published, Told, int]:
        """Plan and publish as a run of its own; tells how many upload sessions were left, too."""
        repository = FarRepository(self.storage, distance.pass_on)
        told = Told()
        store = TellingStore(Nix({}, print), "/nix/store", self.folder / "store")
        upstreams = Upstreams([])
        index = IndexFolder(self.folder / "index", "model")
        publisher = Publisher(repository, store, index, upstreams, _OPTIONS, told)

        async def tell(_paths: Iterable[PathLike]) -> list[PathInfo]:
            await distance.pass_on(_NIX)
            return list(infos)

        TOLD[store.real_store_dir] = tell
        self.runs += 1
        record = PublishRecord(self.scope, str(self.runs), NOON)

        async def journey() -> Published:
            return await publisher.publish(await publisher.plan([]), [record])

        try:
            published = await distance.run(journey())
        finally:
            await upstreams.close()
        return published, told, repository.unused

    async def listed(self) -> set[str]:
        return await names_listed(self.storage)


@pytest.fixture
async def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    asyncio.get_running_loop().set_default_executor(AtOnce(1))
    monkeypatch.setattr(staging, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(commit, "_FIRST_PAUSE_SECONDS", 0.001)
    return Far(ModelStorage(), MadeStore(tmp_path / "store"), tmp_path)


def names(infos: Iterable[PathInfo]) -> set[str]:
    return {info.store_path.base_name for info in infos}


def small(far: Far, *seeds: str) -> list[PathInfo]:
    return [far.made.add(seed, noise(seed, 1000)) for seed in seeds]


async def test_a_first_push_is_ten_round_trips(far: Far) -> None:
    """The cache is read while Nix tells the closure; what needs no answer of another request is asked beside.

    A real registry has two more in front: the first request's 401, and the token.
    """
    distance = Distance()
    infos = small(far, "one", "two")
    published, _, unused = await far.push(infos, distance)
    kinds = [sorted({_kind(request) for request in trip}) for trip in distance.trips]
    assert kinds == [
        ["list tags", _NIX],
        ["resolve cache-index"],
        ["list tags", "open an upload", "stat"],
        ["open an upload", "push blob", "resolve cache-index"],
        ["push blob"],
        ["push manifest segment"],
        ["list tags", "stat"],  # the final look reads a byte of each blob, beside the index
        ["resolve cache-index"],
        ["push manifest cache-index"],
        ["resolve cache-index"],
    ]
    assert (published.is_index_confirmed, unused) == (True, 0)
    assert await far.listed() == names(infos)


async def test_a_second_push_is_nine_round_trips(far: Far) -> None:
    """Tables that this machine sent are on its disk: nothing is downloaded."""
    first = small(far, "one", "two")
    await far.push(first, Distance())
    distance = Distance()
    infos = [*first, *small(far, "three")]
    await far.push(infos, distance)
    assert [sorted({_kind(request) for request in trip}) for trip in distance.trips] == [
        ["list tags", _NIX],
        ["resolve cache-index"],
        ["list tags", "open an upload", "stat"],
        ["push blob", "resolve cache-index"],
        ["push manifest segment"],
        ["list tags", "stat"],  # the final look reads a byte of each blob, beside the index
        ["resolve cache-index"],
        ["push manifest cache-index"],
        ["resolve cache-index"],
    ]
    tables = {segment.table for segment in (await read_listing(near(far))).segments}
    asked = {request.removeprefix("stat ") for trip in distance.trips for request in trip}
    assert not asked & {str(table) for table in tables}
    assert await far.listed() == names(infos)


async def test_a_push_that_finds_all_of_it_is_two_round_trips(far: Far) -> None:
    """The cache is read, and that is all: the roots are recorded already."""
    infos = small(far, "one", "two")
    await far.push(infos, Distance())
    distance = Distance()
    published, _, unused = await far.push(infos, distance)
    assert [sorted({_kind(request) for request in trip}) for trip in distance.trips] == [
        ["list tags", _NIX],
        ["resolve cache-index"],
    ]
    assert (published.is_needless, unused) == (True, 0)


async def test_a_record_that_counts_leaves_no_session(far: Far) -> None:
    """It is a table, and takes the session that was opened for whatever would come."""
    infos = small(far, "one", "two")
    await far.push(infos, Distance())
    far.scope = "another"
    distance = Distance()
    _, _, unused = await far.push(infos, distance)
    requests = [request for trip in distance.trips for request in trip]
    assert (requests.count("open an upload"), unused) == (1, 0)


async def test_a_segment_that_only_its_tag_knows_gets_listed(far: Far) -> None:
    """Another writer's index overwrote ours: then a publish has something to write, whatever it records."""
    infos = small(far, "one")
    await far.push(infos, Distance())
    await near(far).push_manifest(INDEX_TAG, CacheIndex().render(), "")
    published, _, _ = await far.push(infos, Distance())
    assert not published.is_needless
    index = CacheIndex.parse(far.storage.manifests[far.storage.tags[INDEX_TAG]])
    assert len(index.segments) == 2


async def test_what_a_killed_push_sent_leaves_one_session_at_most(far: Far) -> None:
    """A pack that is found there does not take the session that was opened for it."""
    infos = small(far, "one", "two")
    await far.push(infos, Distance())
    far.storage.tags.clear()
    far.storage.manifests.clear()
    _, told, unused = await far.push(infos, Distance())
    assert (told.staged, told.sent_bytes) == (len(infos), 0)
    assert unused <= 1
    assert await far.listed() == names(infos)


async def test_what_gc_condemns_meanwhile_is_sent_again(far: Far) -> None:
    """The index that was written is what the last look goes by: what was counted on is gone from it."""
    first = small(far, "one")
    await far.push(first, Distance())
    distance = Distance()
    is_condemned = False

    async def condemn(requests: list[str]) -> None:
        nonlocal is_condemned
        if not is_condemned and any(request.startswith("push manifest segment") for request in requests):
            is_condemned = True

            async def mark_all(union: Union) -> CacheIndex:
                marked = tuple(mark(segment, NOON) for segment in union.index.segments)
                return replace(union.index, segments=marked)

            assert await write_index(near(far), (), mark_all)

    distance.between = condemn
    _, told, _ = await far.push([*first, *small(far, "two")], distance)
    assert told.warnings == ["sending again what has left the cache in the meantime: 1 path"]
    good = [one for one in (await read_listing(near(far))).segments if one.condemned is None]
    assert sum(segment.paths for segment in good) == len(first) + 1


async def test_what_is_gone_from_under_its_manifest_is_sent_again(far: Far) -> None:
    """A registry may take a manifest by what it remembers of blobs: the final look reads, and finds out."""
    distance = Distance()
    infos = small(far, "one")
    collected: list[bytes] = []

    async def collect(requests: list[str]) -> None:
        if not collected and any(request.startswith("push manifest segment") for request in requests):
            pack = max(far.storage.blobs, key=lambda digest: len(far.storage.blobs[digest]))
            collected.append(far.storage.blobs.pop(pack))

    distance.between = collect
    published, told, _ = await far.push(infos, distance)
    assert told.warnings == ["sending again what has left the cache in the meantime: 1 path"]
    assert collected[0] in far.storage.blobs.values()
    assert len(published.segments) == 2


async def test_an_index_that_others_overwrite_is_read_anew(far: Far) -> None:
    """What was not seen to be ours says nothing: tags and index are asked for."""
    distance = Distance()

    async def overwrite(requests: list[str]) -> None:
        if distance.trips[-2:-1] and distance.trips[-2][0].startswith(f"push manifest {INDEX_TAG}"):
            assert requests == [f"resolve {INDEX_TAG}"]
            await near(far).push_manifest(INDEX_TAG, CacheIndex().render(), "")

    distance.between = overwrite
    published, _, _ = await far.push(infos := small(far, "one"), distance)
    assert not published.is_index_confirmed
    assert distance.trips[-3:-1] == [["list tags"], [f"resolve {INDEX_TAG}"]]
    assert await far.listed() == names(infos)


@pytest.mark.parametrize("trip", [1, 2])
async def test_what_the_older_tool_writes_after_the_plan_is_taken_over(far: Far, trip: int) -> None:
    """The plan did not know of it; it is looked for once more, while the paths are sent."""
    distance = Distance()

    async def write(_requests: list[str]) -> None:
        if len(distance.trips) == trip + 1:
            await publish_version1(near(far), ALL)

    distance.between = write
    published, _, _ = await far.push(infos := small(far, "one"), distance)
    assert published.conversion is not None
    assert await far.listed() == names(infos) | base_names(*ALL)
    assert (await read_listing(near(far))).version1 is None


def near(far: Far) -> ModelRepository:
    return ModelRepository(far.storage, nothing)


def _kind(request: str) -> str:
    for kind in ("stat", "push blob", "push manifest segment", f"push manifest {INDEX_TAG}"):
        if request.startswith(kind):
            return kind
    return request
