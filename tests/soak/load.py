"""The story of a load: clients on one side, a registry in trouble on the other, and the real proxy between.

A publisher adds segments and collects meanwhile. The proxy is looked at before, during, and after it came to
rest; at the end everything that was published is fetched again, from it and from a fresh one.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import zstandard

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.registry.client import RegistryRemover
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.gc.collect import carry_out_gc, prepare_gc
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import StorePath
from tests.soak.catalogue import Catalogue, Origin, Shape, make_objects, write_upstream
from tests.soak.chaos import Chaos, Pace
from tests.soak.far_side import FarSide
from tests.soak.process_figures import Figures, summarise
from tests.soak.traffic import Report
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject, publish

_WAIT_SECONDS: Final = 150.0
_LOOK_SECONDS: Final = 1.0
_COLLECTS: Final = GcOptions(
    retention=timedelta(days=1), grace=timedelta(seconds=60), min_age=timedelta(seconds=15)
)
_GC_EVERY: Final = 6  # publishes


@dataclass(frozen=True, slots=True)
class Size:
    """How large a load is.

    Attributes:
        seconds: of the load that is measured.
        warm_seconds: of the one before it, after which memory may not grow any more; 0 for none.
        transfer_seconds: the least and the most that a client takes to read a NAR.
        connections: at once.
        kept: segments that are there from the start.
        late: segments that come meanwhile; every third of them is collected again.
        shape: of the former.
        late_shape: of the latter.
        upstream: of the other cache.
        settle_seconds: how long the proxy may take to come to rest.
        pace: of the trouble.
        least_connections: that the median must come to.
        least_nars: in flight, that the median must come to.
        growth_bytes: of memory, that is no leak: each thread has an arena of its own in the allocator, which
            gives back its end alone.
        spare_files: descriptors more than before that may stay open for a while, such as connections to the
            registry that are kept for the next request.
    """

    seconds: float
    warm_seconds: float
    transfer_seconds: tuple[float, float]
    connections: int
    kept: int
    late: int
    shape: Shape
    late_shape: Shape
    upstream: Shape
    settle_seconds: float
    pace: Pace
    least_connections: int
    least_nars: int
    growth_bytes: int
    spare_files: int


@dataclass(slots=True)
class Outcome:
    """What a load came to."""

    seed: str
    reports: list[Report] = field(default_factory=list)
    before: Figures | None = None
    warm: Figures | None = None
    after: Figures | None = None
    during: list[Figures] = field(default_factory=list)
    published: int = 0
    publish_failures: int = 0
    collections: int = 0
    collection_failures: int = 0
    injected: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    lost: int = 0
    tracebacks: int = 0

    def figures(self) -> str:
        """Tell all of it, for people."""
        lines = [
            f"seed {self.seed}",
            f"before: {self.before}",
            f"at rest after warming up: {self.warm}",
            f"during: {summarise(self.during)}",
            f"at rest after the load: {self.after}",
        ]
        for report in self.reports:
            lines.append(f"  {replace(report, outcomes={})}")
            lines += [f"    {count:>8} {name}" for name, count in sorted(report.outcomes.items())]
        lines += [
            f"published {self.published} ({self.publish_failures} tries failed)",
            f"collected {self.collections} times ({self.collection_failures} failed)",
            f"faults: {self.injected}",
            f"counters: {self.counters}",
            f"blobs refused at the end, for their bytes were wrong: {self.refused}; lost: {self.lost}",
        ]
        return "\n".join(lines)


class Load:
    """One load.

    Args:
        folder: for everything.
        size: of it.
        seed: of what is drawn.
    """

    def __init__(self, folder: Path, size: Size, seed: str) -> None:
        self._folder = folder
        self._size = size
        self._seed = seed
        self._key = SecretKey.generate("load-1")
        self._kept = [self._objects("kept", number, size.shape) for number in range(size.kept)]
        self._late = [self._objects("late", number, size.late_shape) for number in range(size.late)]
        self._upstream = make_objects(f"{seed}-upstream", size.upstream, self._key)
        self._random = random.Random(f"publisher-{seed}")
        self._done: list[StoreObject] = []
        self.outcome = Outcome(seed)

    async def run(self) -> Outcome:
        """Do it all; what must hold is for the caller to assert."""
        write_upstream(self._folder / "upstream", self._upstream)
        self._catalogue = Catalogue.write(self._folder / "catalogue", self._groups())
        with FarSide(self._folder / "upstream", self._folder) as far_side:
            self._far_side = far_side
            for objects in self._kept:
                await self._publish(objects, "kept")
            token = self._folder / "token"
            token.write_text(f"octocat:{far_side.token}\n")
            self._settings = {
                **far_side.settings,
                "NIXCACHE_TOKEN_FILE": str(token),
                "NIXCACHE_UPSTREAM": far_side.upstream_url,
                "NIXCACHE_PUBLIC_KEYS": str(self._key.public_key),
                "NIXCACHE_INDEX_TTL": "3",
            }
            with ProxyProcess(self._folder / "proxy", **self._settings) as proxy:
                await asyncio.to_thread(proxy.wait_ready)
                await self._load(proxy)
                self.outcome.refused = await asyncio.to_thread(self._fetch_all, proxy)
                self.outcome.tracebacks = proxy.log.count("Traceback")
            with ProxyProcess(self._folder / "fresh", **self._settings) as fresh:
                await asyncio.to_thread(fresh.wait_ready)
                self.outcome.lost = await asyncio.to_thread(self._fetch_all, fresh)
        return self.outcome

    async def _load(self, proxy: ProxyProcess) -> None:
        outcome, size = self.outcome, self._size
        outcome.before = await self._settled(proxy)
        outcome.warm = outcome.before
        if size.warm_seconds:
            # The caches fill, and the interpreter takes what it needs: only what comes after is a leak.
            async with self._troubled():
                outcome.reports.append(await self._traffic(proxy, size.warm_seconds, "warm"))
            outcome.warm = await self._settled(proxy)
        watching = asyncio.create_task(self._watch(proxy))
        async with self._troubled():
            outcome.reports.append(await self._traffic(proxy, size.seconds, "load"))
        watching.cancel()
        outcome.after = await self._settled(proxy)
        outcome.counters = (await asyncio.to_thread(proxy.status))["counters"]

    @asynccontextmanager
    async def _troubled(self) -> AsyncIterator[None]:
        """Make trouble and publish meanwhile."""
        chaos = Chaos(self._far_side, self._seed, self._size.pace)
        tasks = [asyncio.create_task(chaos.run()), asyncio.create_task(self._publish_late())]
        try:
            yield
        finally:
            # What is under way is finished in the trouble that it began in: the publisher first.
            for task in reversed(tasks):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            for kind, count in chaos.injected.items():
                self.outcome.injected[kind] = self.outcome.injected.get(kind, 0) + count

    async def _traffic(self, proxy: ProxyProcess, seconds: float, part: str) -> Report:
        told = {
            "host": proxy.host,
            "catalogue": str(self._folder / "catalogue"),
            "seed": f"{self._seed}-{part}",
            "connections": self._size.connections,
            "seconds": seconds,
            "wait_seconds": _WAIT_SECONDS,
            "transfer_seconds": self._size.transfer_seconds,
        }
        command = (sys.executable, "-m", "tests.soak.traffic", json.dumps(told))
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            stdout, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode:
            raise RuntimeError(f"the load generator ended with {process.returncode}")
        return Report(**json.loads(stdout))

    async def _watch(self, proxy: ProxyProcess) -> None:
        while True:
            self.outcome.during.append(Figures.take(proxy))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _settled(self, proxy: ProxyProcess) -> Figures:
        """Wait until it holds no more than it may, or for as long as that may take."""
        end = time.monotonic() + self._size.settle_seconds
        while True:
            status = await asyncio.to_thread(proxy.status)
            figures = Figures.take(
                proxy, packs=int(status["pack_cache_bytes"]), segments=int(status["segments"])
            )
            before = self.outcome.before or figures
            most = before.files + self._size.spare_files
            if (figures.files <= most and figures.holds_listed_tables) or time.monotonic() > end:
                return figures
            await asyncio.sleep(0.5)

    # Publisher

    async def _publish_late(self) -> None:
        """Publish one after another, evenly over the load, and collect now and then."""
        pause = self._size.seconds / (len(self._late) + 1)
        while self.outcome.published < len(self._late):
            await asyncio.sleep(pause * self._random.uniform(0.3, 1.7))
            number = self.outcome.published
            while not await self._try_to_publish(number):
                self.outcome.publish_failures += 1
            self.outcome.published += 1
            if number % _GC_EVERY == _GC_EVERY - 1:
                await self._collect()

    async def _try_to_publish(self, number: int) -> bool:
        try:
            await self._publish(self._late[number], "passing" if _is_passing(number) else "late")
        except (Error, AssertionError):  # the index was not confirmed: the helper asserts that
            return False
        return True

    async def _publish(self, objects: list[StoreObject], origin: Origin) -> None:
        """Publish one segment; what is to pass has no root."""
        created = now()
        roots = tuple((each.narinfo.store_path.name, each.narinfo.store_path) for each in objects)
        name = _scope(objects[0].narinfo.store_path)
        records = [] if origin == "passing" else [PublishRecord(name, "run-1", created, roots)]
        client = self._far_side.client()
        try:
            await publish(client, objects, created=created, keys=[self._key], records=records)
        finally:
            await client.close()
        if origin != "passing":
            self._done += objects

    async def _collect(self) -> None:
        """Collect garbage: the cache's, and then the registry's own."""
        client, remover = self._far_side.client(), RegistryRemover(self._far_side.client(delete=True))
        try:
            await carry_out_gc(client, remover, await prepare_gc(client, remover, _COLLECTS))
            self._far_side.do("sweep")
        except Error:
            self.outcome.collection_failures += 1
        else:
            self.outcome.collections += 1
        finally:
            await client.close()
            await remover.close()

    def _objects(self, name: str, number: int, shape: Shape) -> list[StoreObject]:
        return make_objects(f"{self._seed}-{name}-{number}", shape, self._key)

    def _groups(self) -> Iterable[tuple[Origin, list[StoreObject]]]:
        for objects in self._kept:
            yield "kept", objects
        for number, objects in enumerate(self._late):
            yield ("passing" if _is_passing(number) else "late"), objects
        yield "upstream", self._upstream

    # The end

    def _fetch_all(self, proxy: ProxyProcess) -> int:
        """Fetch every path that was published for good; tells how many blobs were refused.

        A proxy refuses what came with wrong bytes, for ten minutes.
        """
        self._far_side.do("clear_faults")
        proxy.refresh()
        refused = {url.blob for one in self._done if (url := _fetch(proxy, one)) is not None}
        return len(refused)


def _fetch(proxy: ProxyProcess, one: StoreObject) -> NarUrl | None:
    """Fetch one path, and hold it to its hash; gives the URL of what is refused."""
    path = one.narinfo.store_path
    answer = proxy.ask(f"/{path.hash_part}.narinfo")
    assert answer.status == 200, f"{path} is not listed"
    narinfo = NarInfo.parse(answer.body)
    nar = proxy.ask(f"/{narinfo.url}")
    if nar.status == 404:
        return NarUrl.parse(narinfo.url)
    body = zstandard.ZstdDecompressor().decompressobj().decompress(nar.body)
    assert body == one.nar, f"{path} has other bytes"
    return None


def _is_passing(number: int) -> bool:
    return number % 3 == 2


def _scope(path: StorePath) -> str:
    return f"push/{path.name}"
