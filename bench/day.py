"""A cache that is published to all day, beside one push of the same paths.

Publishers run in this process (see ``made_up``), four at a time, against a real docker-registry at a
distance; pushes that are timed are the real program, on machines that have no index yet. The one push begins
with the closure that is realised later, so that its paths lie together.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import psutil

from bench.distance import Distance, at_distance
from bench.figures import Series, Target
from bench.made_up import MadeUp, publish
from bench.narinfo import ask_each
from bench.places import Client, find_clients, remove_store
from bench.publish import REQUEST
from bench.scenario import OURS, Bench, Measurement
from bench.wrk import CONNECTIONS, ask_at_random
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.segment import Segment
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.proxy.open_files import allow_many_files
from tests.support.docker_registry import DockerRegistry
from tests.support.nix import NixSandbox
from tests.support.objects import hash_part_of
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine
from tests.support.registries import REPO

TITLE = "a cache that is published to all day, beside one push of the same paths"

ONE_PUSH: Final = "one push"
_FIRST: Final = "the first pushes"
_PUBLISHES, _QUICK_PUBLISHES = (300, 1000), (24,)
_MOST_PATHS: Final = 20  # of a publish
_AT_ONCE: Final = 4
CLOSURE: Final = 300
_DISTANCE: Final = Distance(0.040)
_SECONDS, _QUICK_SECONDS = 5, 1
_MISSES: Final = 10_000
_READY_SECONDS: Final = 60.0
_A_SECOND: Final = 1.1  # gc tells time to the second
_MIB: Final = 1024 * 1024


def run(bench: Bench) -> None:
    """Measure days of several lengths."""
    allow_many_files()  # each publisher holds the tables of all segments
    lengths = _QUICK_PUBLISHES if bench.is_quick else _PUBLISHES
    for publishes in (bench.size,) if bench.size is not None else lengths:
        with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
            day, one = (
                stack.enter_context(DockerRegistry(auth=False)),
                stack.enter_context(DockerRegistry(auth=False)),
            )
            hosts = stack.enter_context(at_distance(_DISTANCE, day.host, one.host))
            _Comparison(bench, Path(name), publishes, day, one, hosts).run()


def series_of_closure(publishes: int, nix_version: str) -> Series:
    """Name what README's chart shows."""
    name = f"{CLOSURE} paths spread over all publishes realised, Nix {nix_version}"
    return Series(name, "s", at=publishes, axis="publishes")


@dataclass(frozen=True, slots=True)
class _Load:
    """What is published.

    Attributes:
        publishes: each with its root last.
        closure: of paths that lie in all of them; its root is last.
    """

    publishes: Sequence[Sequence[MadeUp]]
    closure: Sequence[MadeUp]

    @classmethod
    def make_up(cls, publishes: int) -> "_Load":
        """Make up as many publishes, the same ones each time."""
        chance = random.Random(publishes)
        made: list[list[MadeUp]] = []
        for number in range(publishes):
            below = [
                MadeUp.of_a_usual_size(f"{number}-{each}") for each in range(chance.randrange(_MOST_PATHS))
            ]
            references = tuple(each.store_path.base_name for each in below)
            made.append([*below, MadeUp.of_a_usual_size(f"{number}-root", references)])
        # One of each in turn, and not its root, where it has others: that would bring all of them.
        free = [chance.sample(each[:-1], len(each) - 1) for each in made]
        chosen: list[MadeUp] = []
        while len(chosen) < CLOSURE and any(free):
            chosen += [each.pop() for each in free if each]
        chosen = sorted(chance.sample(chosen, min(CLOSURE, len(chosen))), key=lambda each: each.name)
        root = MadeUp("closure", 1000, tuple(each.store_path.base_name for each in chosen))
        return cls(made, [*chosen, root])

    @property
    def paths(self) -> list[MadeUp]:
        """All of them, the closure first."""
        every = [*self.closure, *(each for published in self.publishes for each in published)]
        return list(dict.fromkeys(every))

    @property
    def roots(self) -> list[MadeUp]:
        """All that gc keeps by name."""
        return [self.closure[-1], *(published[-1] for published in self.publishes)]


class _Comparison:
    """One length of a day."""

    def __init__(
        self,
        bench: Bench,
        folder: Path,
        publishes: int,
        day: DockerRegistry,
        one: DockerRegistry,
        hosts: Sequence[str],
    ) -> None:
        self._bench = bench
        self._folder = folder
        self._publishes = publishes
        self._registries: Mapping[str, DockerRegistry] = {OURS: day, ONE_PUSH: one}
        self._hosts = dict(zip(self._registries, hosts, strict=True))
        self._key = SecretKey.generate("bench-1")
        self._load = _Load.make_up(publishes)
        self._numbers = count()

    def run(self) -> None:
        """Publish, read, and collect."""
        paths = self._load.paths
        clients = list(find_clients(self._folder))
        self._bench.note("Nix", ", ".join(client.version for client in clients))
        self._bench.note(f"paths of {self._publishes} publishes", f"{len(paths):,}")
        self._publish()
        self._compare_starts()
        self._compare_look_ups()
        for client in clients:
            self._compare_realising(client)
        self._collect()

    def _series(self, name: str, unit: str, *, is_more_better: bool = False) -> Series:
        better: Final = "higher" if is_more_better else "lower"
        return Series(name, unit, better, at=self._publishes, axis="publishes")

    def _publish(self) -> None:
        """Fill both registries; what the day's cache lists meanwhile, and how long a push takes."""
        live = self._series("live segments that are not merged, at most", "segments")
        push = self._series("push of one more path", "s")
        nix = NixSandbox(self._folder / "nix")
        self._bench.compare({_FIRST: lambda: {push: self._time_push(nix)}})
        self._bench.compare({OURS: lambda: {live: asyncio.run(self._publish_all())}}, rounds=1)
        self._bench.compare({OURS: lambda: {push: self._time_push(nix)}})
        host, index = self._hosts[ONE_PUSH], self._folder / "index-one"
        asyncio.run(publish(host, index, self._load.paths, self._load.roots, self._key))
        self._bench.expect(Target(live, OURS, 40))
        self._bench.expect(Target(push, OURS, 1.3, beside=_FIRST))

    async def _publish_all(self) -> int:
        """Publish all of the day, then the closure's root; gives the most live segments seen."""
        waiting = list(reversed(self._load.publishes))
        reference = RegistryReference.of(self._registries[OURS].host, REPO, "nix-cache")
        near = Registry(reference, None, patience=20)
        most = 0
        known: Sequence[Segment] = ()

        async def work(number: int) -> None:
            nonlocal most, known
            while waiting:
                objects = waiting.pop()
                await self._publish_to_day(number, objects)
                known = (await read_listing(near, known)).segments
                most = max(most, _count_live(known))

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(_AT_ONCE):
                    group.create_task(work(number))
            await self._publish_to_day(0, self._load.closure)
        finally:
            await near.close()
        return most

    async def _publish_to_day(self, number: int, objects: Sequence[MadeUp]) -> None:
        host, folder = self._hosts[OURS], self._folder / f"index-{number}"
        await publish(host, folder, objects, objects[-1:], self._key)

    def _time_push(self, nix: NixSandbox) -> float:
        """Push one more path by the real program, on a machine that has no index."""
        name = f"push-{next(self._numbers)}"
        path = nix.build_file(name, name.encode())
        machine = self._machine(nix, name)
        begun = time.monotonic()
        machine.run("push", path).check()
        return time.monotonic() - begun

    def _machine(self, nix: NixSandbox, name: str) -> Machine:
        settings = self._settings(OURS) | {"NIX_SIGNING_KEY": self._key.render()}
        return Machine(self._folder / name, nix, settings)

    def _settings(self, contender: str) -> dict[str, str]:
        return {"NIXCACHE_REGISTRY": self._hosts[contender], "NIXCACHE_REPO": REPO}

    def _proxy(self, contender: str, folder: str) -> ProxyProcess:
        public_key = str(self._key.public_key)
        return ProxyProcess(
            self._folder / folder, **self._settings(contender), NIXCACHE_PUBLIC_KEYS=public_key
        )

    def _requests(self, contender: str) -> int:
        """Count those that its registry has answered."""
        return len(REQUEST.findall(self._registries[contender].log))

    def _beside(self, measure: Callable[[str], Measurement]) -> None:
        self._bench.compare({contender: partial(measure, contender) for contender in self._registries})

    def _compare_starts(self) -> None:
        """Start a proxy where nothing is on disk, and ask for what was published first."""
        seconds = self._series("first narinfo of a fresh proxy", "s")
        requests = self._series("requests of a fresh proxy", "requests")
        target = f"/{self._load.publishes[0][-1].store_path.hash_part}.narinfo"

        def start(contender: str) -> Measurement:
            before = self._requests(contender)
            begun = time.monotonic()
            with self._proxy(contender, f"fresh-{next(self._numbers)}") as proxy:
                while proxy.ask(target).status != 200:
                    if time.monotonic() - begun > _READY_SECONDS:
                        raise RuntimeError(f"{target} is not there after {_READY_SECONDS} s")
                taken = time.monotonic() - begun
                proxy.wait_ready()
            # The target's NAR may be fetched ahead.
            return {seconds: taken, requests: self._requests(contender) - before}

        self._beside(start)
        one = statistics.median(self._bench.figures.values[seconds][ONE_PUSH])
        self._bench.expect(Target(seconds, OURS, one + 1))
        self._bench.expect(Target(requests, OURS, 100))

    def _compare_look_ups(self) -> None:
        """Ask for what is there, and for what is not, over many connections."""
        hits = self._series(f"hits, {CONNECTIONS} connections", "1/s", is_more_better=True)
        misses = self._series(f"misses, {CONNECTIONS} connections", "1/s", is_more_better=True)
        files = self._series("open files of a proxy", "files")
        there, absent = self._folder / "there", self._folder / "absent"
        parts = [each.store_path.hash_part for each in self._load.paths]
        there.write_text("".join(f"/{part}.narinfo\n" for part in parts))
        absent.write_text("".join(f"/{hash_part_of(f'absent {each}')}.narinfo\n" for each in range(_MISSES)))
        seconds = _QUICK_SECONDS if self._bench.is_quick else _SECONDS
        with ExitStack() as stack:
            proxies = {
                contender: stack.enter_context(self._proxy(contender, f"proxy-{contender}"))
                for contender in self._registries
            }
            for proxy in proxies.values():
                proxy.wait_ready()
                ask_each(proxy.host, there.read_text().split())
                ask_at_random(proxy.host, there, seconds)  # until nothing is fetched ahead any more

            def measure(contender: str) -> Measurement:
                proxy = proxies[contender]
                found, missed = (ask_at_random(proxy.host, paths, seconds) for paths in (there, absent))
                if found.errors or missed.errors != missed.count:
                    raise RuntimeError(f"{contender}: {found} are not all hits, or {missed} not all misses")
                opened = psutil.Process(proxy.process.pid).num_fds()
                return {hits: found.per_second, misses: missed.per_second, files: opened}

            self._beside(measure)
        self._bench.expect(Target(hits, OURS, 0.9, beside=ONE_PUSH))
        self._bench.expect(Target(misses, OURS, 0.9, beside=ONE_PUSH))
        self._bench.expect(Target(files, OURS, 64))

    def _compare_realising(self, client: Client) -> None:
        """Realise the closure through a proxy that has the index and nothing else."""
        series = series_of_closure(self._publishes, client.version)
        root = str(self._load.closure[-1].store_path)

        def realise(contender: str) -> Measurement:
            with self._proxy(contender, f"proxy-{contender}") as proxy:
                proxy.refresh()
                begun = time.monotonic()
                result = client.nix.realise(
                    [root], substituters=[proxy.url], trusted_keys=[str(self._key.public_key)]
                )
                seconds = time.monotonic() - begun
                result.check()
            remove_store(result.store)
            return {series: seconds}

        self._beside(realise)
        self._bench.expect(Target(series, OURS, 1.5, beside=ONE_PUSH))

    def _collect(self) -> None:
        """Weigh both registries, before gc and after it and the grace."""
        before = self._series("bytes in the registry, before gc", "MiB")
        after = self._series("bytes in the registry, after gc and grace", "MiB")
        marked, idle = (
            self._series(f"requests of a gc that has nothing to do, {when}", "requests")
            for when in ("within the grace", "after it")
        )
        figures, day = self._bench.figures, self._registries[OURS]
        one = self._registries[ONE_PUSH].disk_usage() / _MIB
        figures.record(before, OURS, day.disk_usage() / _MIB)
        machine = self._machine(NixSandbox(self._folder / "nix-gc"), "gc")

        def collect(*flags: str) -> int:
            seen = self._requests(OURS)
            machine.run("gc", *flags).check()
            return self._requests(OURS) - seen

        time.sleep(_A_SECOND)
        collect("--min-age-hours", "0")
        figures.record(marked, OURS, collect())
        # Mark, unlist and delete, and whatever follows from that.
        for _ in range(4):
            time.sleep(_A_SECOND)
            collect("--min-age-hours", "0", "--grace-days", "0")
        figures.record(idle, OURS, collect())
        day.stop()
        day.garbage_collect(untagged=True)
        figures.record(after, OURS, day.disk_usage() / _MIB)
        for series, limit in ((before, 1.4), (after, 1.1)):
            figures.record(series, ONE_PUSH, one)
            self._bench.expect(Target(series, OURS, limit, beside=ONE_PUSH))


def _count_live(segments: Iterable[Segment]) -> int:
    """Count segments that are neither condemned nor taken in by another one."""
    live = [segment for segment in segments if segment.condemned is None]
    merged = {manifest for segment in live for manifest in segment.merges}
    return sum(segment.manifest not in merged for segment in live)
