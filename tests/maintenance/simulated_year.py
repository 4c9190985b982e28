"""A year of publishes and collections in seconds: time is an argument.

Two branches and two systems; the tree of packages changes a little with every publish, is reverted now and
then, some roots fail for weeks, some runs are narrowed, some are split over jobs, some paths are pinned. What
has to be there is written down beside it in the plainest way (``Wanted``), and checked after every step.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from nixcache_oci.cache.record import PinRecord, PublishRecord, Record, UnpinRecord
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.publisher.merge_plan import MAX_UNMERGED
from tests.maintenance.model_publisher import ModelRemover, Thing, collect, merge, publish_things, sweep_blobs
from tests.maintenance.served import Reader, View
from tests.support.interleaving import nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

SYSTEMS = ("x86_64-linux", "aarch64-linux")
BRANCHES = ("dev", "main")
GROUPS = 8
BASES = 8
GROUP_SIZE = 9
UPSTREAM = frozenset({"0" * 32 + "-glibc"})
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Shape:
    """How long a year is, and how gc is told to behave in it."""

    days: int = 365
    options: GcOptions = field(default_factory=GcOptions)
    days_between_gcs: int = 1
    longest_failure_days: int = 40
    pushes_a_day: int = 0  # of one path each
    seed: int = 1


@dataclass
class Figures:
    """What came of it."""

    paths: int = 0
    publishes: int = 0
    collections: int = 0
    largest_refresh: int = 0
    most_unmerged: int = 0
    months: list["Month"] = field(default_factory=list)


class Month(NamedTuple):
    """A look at the repository; former indexes wait in it for their grace, too."""

    day: int
    good_segments: int
    condemned_segments: int
    stored_bytes: int
    index_bytes: int
    needed_nar_bytes: int


class Tree:
    """The packages of one branch: versions, and what they are built of."""

    def __init__(self, random_source: random.Random) -> None:
        self.versions = [0] * (BASES + GROUPS * GROUP_SIZE)
        self._random = random_source

    def change(self) -> None:
        """Change one package, or take its last change back."""
        is_base = self._random.random() < 0.06
        package = (
            self._random.randrange(BASES) if is_base else self._random.randrange(BASES, len(self.versions))
        )
        is_revert = self._random.random() < 0.1 and self.versions[package]
        self.versions[package] += -1 if is_revert else 1

    def references(self, package: int) -> list[int]:
        if package < BASES:
            return []
        group, position = divmod(package - BASES, GROUP_SIZE)
        start = package - position
        inside = [start + (position - step) for step in (1, 3) if position >= step]
        return [(group + position) % BASES, *inside]


class Wanted:
    """What has to be there, told from the publishes alone.

    A root is wanted as long as it is its scope's current one, and for the retention after that.
    """

    def __init__(self, options: GcOptions) -> None:
        self._options = options
        self._current: defaultdict[str, dict[str, frozenset[str]]] = defaultdict(dict)
        self._former: list[tuple[datetime, str, frozenset[str]]] = []
        self._last_publish: dict[str, datetime] = {}
        self._pins: list[tuple[PinRecord, datetime | None]] = []

    def publish(self, record: PublishRecord, run_names: Iterable[str] | None) -> None:
        """Take a publish in; ``run_names`` are all names of a whole run, at its last job."""
        current = self._current[record.scope]
        self._last_publish[record.scope] = record.time
        built: defaultdict[str, set[str]] = defaultdict(set)
        for name, path in record.roots:
            built[name].add(path.base_name)
        for name, paths in built.items():
            self._replace(record, name, frozenset(paths))
        for name in set(current) - set(run_names if run_names is not None else current):
            self._replace(record, name, None)

    def _replace(self, record: PublishRecord, name: str, paths: frozenset[str] | None) -> None:
        current = self._current[record.scope]
        if name in current:
            self._former.append((record.time, record.scope, current.pop(name)))
        if paths is not None:
            current[name] = paths

    def pin(self, record: PinRecord) -> None:
        self._pins.append((record, None))

    def unpin(self, record: UnpinRecord) -> None:
        self._pins = [
            (pin, record.time if pin.name == record.name and ended is None else ended)
            for pin, ended in self._pins
        ]

    def roots(self, now: datetime) -> set[str]:
        ttl = self._options.scope_ttl
        open_scopes = {scope for scope, time in self._last_publish.items() if ttl is None or now < time + ttl}
        wanted = {path for scope in open_scopes for paths in self._current[scope].values() for path in paths}
        wanted |= {
            path
            for time, scope, paths in self._former
            if scope in open_scopes and now < time + self._options.retention
            for path in paths
        }
        return wanted | {
            pin.path.base_name for pin, ended in self._pins if ended is None and self._holds(pin, now)
        }

    def _holds(self, pin: PinRecord, now: datetime) -> bool:
        if pin.keep.startswith("until "):
            return now < datetime.fromisoformat(pin.keep.removeprefix("until "))
        if pin.keep == "for 2 revisions":
            later = {one.path for one, _ in self._pins if one.name == pin.name and one.time > pin.time}
            return len(later - {pin.path}) < 2
        return True


class Year:
    """The simulation; ``run`` asserts after every step that nothing is missing."""

    def __init__(self, shape: Shape) -> None:
        self.figures = Figures()
        self._shape = shape
        self._random = random.Random(shape.seed)
        self._storage = ModelStorage()
        self._repository = ModelRepository(self._storage, nothing)
        self._reader = Reader(self._storage)
        self._trees = {branch: Tree(self._random) for branch in BRANCHES}
        self._things: dict[str, Thing] = {}
        self._failing: dict[tuple[str, int], datetime] = {}
        self._wanted = Wanted(shape.options)
        self._remover = ModelRemover(self._storage, nothing)
        self._refreshed: dict[str, int] = {}
        self._now = CREATED

    async def run(self) -> Figures:
        for day in range(self._shape.days):
            for branch in BRANCHES:
                self._tick(10 * HOUR)
                await self._publish_branch(branch, f"{branch}-{day}")
            for number in range(self._shape.pushes_a_day):
                await self._push(number)
            if self._random.random() < 0.05:
                await self._pin(day)
            if day % self._shape.days_between_gcs == 0:
                await self._collect()
            self._tick(DAY - (self._now - CREATED) % DAY)
            if (day + 1) % max(self._shape.days // 12, 1) == 0:
                self._note(day + 1)
        self.figures.paths = len(self._things)
        return self.figures

    async def _publish_branch(self, branch: str, run: str) -> None:
        tree = self._trees[branch]
        if self._random.random() < 0.2:  # nothing changed: mostly, there is nothing to write
            for system in SYSTEMS:
                await self._publish_system(branch, system, run)
            return
        if branch == "main":
            source = self._trees["dev"].versions
            for group in self._random.sample(range(GROUPS), 3):
                start = BASES + group * GROUP_SIZE
                tree.versions[start : start + GROUP_SIZE] = source[start : start + GROUP_SIZE]
            if self._random.random() < 0.05:
                tree.versions[:BASES] = source[:BASES]
        tree.change()
        for system in SYSTEMS:
            await self._publish_system(branch, system, run)

    async def _publish_system(self, branch: str, system: str, run: str) -> None:
        names = list(range(GROUPS))
        is_narrowed = self._random.random() < 0.05
        if is_narrowed:
            names = self._random.sample(names, 2)
        elif self._random.random() < 0.02:
            names.remove(self._random.randrange(GROUPS))  # an output is gone for a while
        jobs = [names[:4], names[4:]] if self._random.random() < 0.2 else [names]
        scope = f"{branch}-{system}"
        if self._random.random() < 0.02:
            jobs, is_narrowed, scope = [names[:1]], True, f"push/{names[0]}"
        for number, job in enumerate(jobs):
            self._tick(HOUR / 2)
            failed = [name for name in job if self._is_failing(system, name)]
            roots = {name: self._build_root(branch, system, name) for name in job if name not in failed}
            record = PublishRecord(
                scope,
                run,
                self._now,
                tuple((f"root {name}", thing.path) for name, things in roots.items() for thing in things),
                tuple(f"root {name}" for name in failed),
                is_partial=is_narrowed and not scope.startswith("push/"),
            )
            await self._publish([thing for things in roots.values() for thing in things], [record])
            is_last = number == len(jobs) - 1
            self._wanted.publish(
                record, [f"root {name}" for name in names] if is_last and not is_narrowed else None
            )
            self._check(after_gc=False)

    async def _publish(self, roots: Sequence[Thing], records: Sequence[Record]) -> None:
        closure = self._closure(thing.base_name for thing in roots)
        before = self._reader.view() if self.figures.publishes else None
        await publish_things(
            self._repository,
            self._storage,
            [self._things[one] for one in sorted(closure)],
            records,
            self._clock,
        )
        await merge(self._repository, self._clock, MAX_UNMERGED)
        view = self._reader.view()
        self.figures.most_unmerged = max(self.figures.most_unmerged, view.unmerged)
        assert closure <= view.good, "a publish left its closure incomplete"
        seen = before.tables if before is not None else {}
        refresh = view.index_bytes + sum(size for table, size in view.tables.items() if table not in seen)
        self.figures.largest_refresh = max(self.figures.largest_refresh, refresh)
        self.figures.publishes += 1

    def _build_root(self, branch: str, system: str, group: int) -> list[Thing]:
        """Build a root: an object with two outputs, and all that they reach."""
        last = BASES + (group + 1) * GROUP_SIZE - 1
        tree = self._trees[branch]
        names: dict[int, Thing] = {}
        wanted = [last]
        for package in wanted:
            wanted += (one for one in tree.references(package) if one not in wanted)
        for package in sorted(wanted):
            parts = [names[one].base_name for one in sorted(tree.references(package))]
            text = f"{system} {package} {tree.versions[package]} {parts}"
            seed = f"{package}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
            references = (*parts, *UPSTREAM) if package < BASES else tuple(parts)
            thing = Thing(seed, references, size=200 + 40 * package, is_large=package % 7 == 0)
            names[package] = self._things.setdefault(thing.base_name, thing)
        return [names[last], names[last - 1]]

    def _is_failing(self, system: str, group: int) -> bool:
        until = self._failing.get((system, group), CREATED)
        if self._now < until:
            return True
        if self._random.random() < 0.01:
            days = self._random.uniform(0, self._shape.longest_failure_days)
            self._failing[system, group] = self._now + timedelta(days=days)
        return False

    async def _pin(self, number: int) -> None:
        self._tick(HOUR)
        name = f"pin-{self._random.randrange(4)}"
        if self._random.random() < 0.4:
            unpin = UnpinRecord(name, self._now)
            await self._publish([], [unpin])
            self._wanted.unpin(unpin)
            return
        until = (self._now + 20 * DAY).strftime("%Y-%m-%dT%H:%M:%SZ")
        keep = ("forever", f"until {until}", "for 2 revisions")[number % 3]
        root = self._build_root("main", SYSTEMS[0], self._random.randrange(GROUPS))[0]
        pin = PinRecord(name, root.path, self._now, keep)
        await self._publish([root], [pin])
        self._wanted.pin(pin)

    async def _push(self, number: int) -> None:
        """Push a path that is often new, and sometimes one of the days before."""
        self._tick(HOUR / 12)
        thing = Thing(f"pushed-{self._random.randrange(20 * self._shape.pushes_a_day)}")
        self._things.setdefault(thing.base_name, thing)
        scope = f"push/{number}"
        record = PublishRecord(
            scope, f"run-{self._now}".replace(" ", "T"), self._now, ((scope, thing.path),), is_partial=True
        )
        await self._publish([thing], [record])
        self._wanted.publish(record, None)

    async def _collect(self) -> None:
        _, collected = await collect(self._repository, self._remover, self._shape.options, self._clock)
        assert collected.is_index_confirmed
        assert not collected.refused
        self.figures.collections += 1
        sweep_blobs(self._storage)
        self._check(after_gc=True)

    def _check(self, *, after_gc: bool) -> None:
        view = self._reader.view()
        needed = self._closure(self._wanted.roots(self._now))
        assert needed <= view.served.keys(), "a live path is missing"
        assert not view.broken(UPSTREAM), "a closure is broken"
        if after_gc:
            assert needed <= view.good, "a live path is left in condemned segments only"

    def _closure(self, base_names: Iterable[str]) -> set[str]:
        found: set[str] = set()
        waiting = list(base_names)
        while waiting:
            one = waiting.pop()
            if one not in found and one not in UPSTREAM:
                found.add(one)
                waiting += self._things[one].references
        return found

    def _note(self, day: int) -> None:
        view: View = self._reader.view()
        needed = self._closure(self._wanted.roots(self._now))
        live = sum(len(self._things[one].content) for one in needed)
        good = view.listed - view.condemned
        month = Month(day, good, view.condemned, self._reader.sizes(), view.index_bytes, live)
        self.figures.months.append(month)

    def _tick(self, passed: timedelta) -> None:
        self._now += passed
        self._remover.look(self._now)

    def _clock(self) -> datetime:
        return self._now
