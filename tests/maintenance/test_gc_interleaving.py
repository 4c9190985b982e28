"""Collections beside publishes and merges, in any order of steps, lose nothing that counts."""

import asyncio
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import product
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.gc.gc_plan import GcOptions
from nixcache_oci.publisher import merge_plan
from tests.maintenance.model_publisher import ModelRemover, Thing, collect, merge, publish_things, sweep_blobs
from tests.maintenance.served import Reader, View
from tests.support.interleaving import Writer, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

# `make soak` takes all cases, and minutes.
IS_SOAK: Final = bool(os.environ.get("NIXCACHE_SOAK"))

HOUR: Final = timedelta(hours=1)
SKEW: Final = HOUR
OPTIONS: Final = GcOptions(
    retention=4 * HOUR, scope_ttl=None, grace=72 * HOUR, min_age=6 * HOUR, segments_of_a_class=2
)
# A publish ends within the grace, whatever the clocks say; a mark may be seen an hour after its time.
LONGEST_PUBLISH: Final = OPTIONS.grace - 4 * HOUR
LONGEST_WRITE: Final = HOUR

LIBS: Final = [Thing(f"lib-{number}") for number in range(2)]
TOOLS: Final = [Thing(f"tool-{number}", (LIBS[number].base_name,)) for number in range(2)]
APPS: Final = [
    [LIBS[0], Thing("app-0", (LIBS[0].base_name,), size=900)],
    [LIBS[0], Thing("app-1", (LIBS[0].base_name,), is_large=True)],
    [LIBS[1], TOOLS[1], Thing("app-2", (TOOLS[1].base_name,), size=900)],
    [LIBS[0], LIBS[1], TOOLS[0], Thing("app-3", (TOOLS[0].base_name, LIBS[1].base_name))],
]
"""Closures; the last of each is the root."""


@dataclass(frozen=True)
class Wait:
    """Time goes by."""

    hours: int


@dataclass(frozen=True)
class Publish:
    """A publisher begins, and takes steps up to a pause."""

    app: int
    pause: str
    skew: int = 0
    crash_at: int | None = None


@dataclass(frozen=True)
class Gc:
    """A gc begins, and takes steps up to a pause."""

    pause: str
    skew: int = 0
    crash_at: int | None = None


@dataclass(frozen=True)
class Merge:
    """A merger begins, and takes steps up to a pause."""

    pause: str
    skew: int = 0
    crash_at: int | None = None


@dataclass(frozen=True)
class Step:
    """Somebody who is at it goes on."""

    who: int
    pause: str


@dataclass(frozen=True)
class Crash:
    """The machine of somebody who is at it is gone."""

    who: int


Act = Wait | Publish | Gc | Merge | Step | Crash

TO_ITS_END: Final = ""
# Where a pause is worth most: before what others will see, and before what others may have changed.
INDEX_WRITE: Final = "push manifest cache-index"
POINTS: Final = ("list tags", "get", "push manifest segment-", INDEX_WRITE, "resolve cache-index", "remove")
PAUSES: Final = st.sampled_from([*(TO_ITS_END,) * 5, *POINTS, INDEX_WRITE])
SKEWS: Final = st.sampled_from([0, 0, 0, -1, 1])
CRASHES: Final = st.one_of(st.none(), st.none(), st.none(), st.integers(1, 60))
ACTS: Final = st.one_of(
    st.builds(Wait, st.sampled_from([1, 7, 7, 30, 73])),
    st.builds(Publish, st.integers(0, len(APPS) - 1), PAUSES, SKEWS, CRASHES),
    st.builds(Gc, PAUSES, SKEWS, CRASHES),
    st.builds(Merge, PAUSES, SKEWS, CRASHES),
    st.builds(Step, st.integers(0, 5), PAUSES),
)


class Player(Writer):
    """A writer that tells what it is about to do."""

    next_step = ""

    async def _before(self, step: str) -> None:
        self.next_step = step
        await super()._before(step)

    def crash(self) -> None:
        """End before the next step."""
        self._crash_at = self._steps + 1

    async def settle(self) -> None:
        """Wait until it is about to do something, or at its end."""
        await self._ready.wait()  # a thread may be at work for it

    @property
    def is_done(self) -> bool:
        return self._task.done()


@dataclass
class Running:
    """Somebody at work."""

    player: Player
    until: datetime | None  # when a publish has to be at its end


class Scene:
    """One repository, a clock, and all who are at work; after every step, what is served is looked at."""

    def __init__(self) -> None:
        self.storage = ModelStorage()
        self.now = CREATED
        self._reader = Reader(self.storage)
        self._running: list[Running] = []
        self._closures: list[tuple[PublishRecord, frozenset[str]]] = []
        self._seen: set[str] = set()

    async def act(self, act: Act) -> None:
        match act:
            case Wait():
                await self._wait(act.hours * HOUR)
            case Publish():
                job = partial(self._publish, act)
                until = self.now + LONGEST_PUBLISH
                await self._begin(Running(Player(self.storage, act.crash_at, job), until), act.pause)
            case Merge():
                job = partial(self._merge, act)
                until = self.now + LONGEST_PUBLISH
                await self._begin(Running(Player(self.storage, act.crash_at, job), until), act.pause)
            case Gc():
                job = partial(self._collect, act)
                await self._begin(Running(Player(self.storage, act.crash_at, job), None), act.pause)
            case Crash() if self._running:
                running = self._running[act.who % len(self._running)]
                running.player.crash()
                await self._step(running, TO_ITS_END)
            case Step() if self._running:
                await self._step(self._running[act.who % len(self._running)], act.pause)

    async def end(self) -> None:
        """Let all come to their ends, then collect once more: all that counts is in good segments."""
        while self._running:
            await self._step(self._running[0], TO_ITS_END)
        sweep_blobs(self.storage)
        repository = ModelRepository(self.storage, nothing)
        if not (
            await read_listing(repository)
        ).is_absent:  # where nobody published, gc has nothing to look at
            await collect(repository, ModelRemover(self.storage, nothing), OPTIONS, lambda: self.now)
        assert self._needed() <= self.look().good

    def look(self) -> View:
        view = self._reader.view()
        self._seen |= view.runs
        missing = self._needed() - view.served.keys()
        assert not missing, f"published, counting and gone: {missing}"
        return view

    def _needed(self) -> set[str]:
        """Everything that somebody published and that counts, by whichever clock.

        Once its record is seen it has to be whole, also if the publisher dies then.
        """
        return {
            base_name
            for record, closure in self._closures
            if record.run in self._seen and self._counts(record)
            for base_name in closure
        }

    def _counts(self, record: PublishRecord) -> bool:
        later = [
            one.time for one, _ in self._closures if one.scope == record.scope and one.time > record.time
        ]
        return not later or self.now + SKEW < min(later) + OPTIONS.retention

    async def _wait(self, passed: timedelta) -> None:
        for running in [one for one in self._running if one.until and one.until < self.now + passed]:
            await self._step(running, TO_ITS_END)
        if passed > LONGEST_WRITE:
            for running in [one for one in self._running if one.player.next_step.startswith(INDEX_WRITE)]:
                await self._step(running, "resolve")
        self.now += passed
        if not self._running:
            sweep_blobs(self.storage)
        self.look()

    async def _begin(self, running: Running, pause: str) -> None:
        self._running.append(running)
        await self._step(running, pause)

    async def _step(self, running: Running, pause: str) -> None:
        """Let somebody go on, a step at least, up to before the step that is named, or to the end."""
        player = running.player
        while not player.is_done:
            await player.step()
            await player.settle()
            self.look()
            if pause and player.next_step.startswith(pause):
                return
        await player.end()
        self._running.remove(running)

    async def _publish(self, act: Publish, repository: ModelRepository) -> None:
        things = APPS[act.app]
        clock = self._clock(act.skew)
        record = PublishRecord(
            f"scope-{act.app % 2}", f"run-{len(self._closures)}", clock(), (("root", things[-1].path),)
        )
        self._closures.append((record, frozenset(thing.base_name for thing in things)))
        await publish_things(repository, self.storage, things, [record], clock)

    async def _collect(self, act: Gc, repository: ModelRepository) -> None:
        remover = ModelRemover(self.storage, repository._before)
        try:
            await collect(repository, remover, OPTIONS, self._clock(act.skew))
        except Error:
            return  # another one was faster; that it left nothing broken is what is looked at

    async def _merge(self, act: Merge, repository: ModelRepository) -> None:
        try:
            await merge(repository, self._clock(act.skew))
        except Error:
            return  # gc was faster

    def _clock(self, skew: int) -> "partial[datetime]":
        return partial(self._time, skew * SKEW)

    def _time(self, skew: timedelta) -> datetime:
        return self.now + skew


async def play(acts: Sequence[Act]) -> None:
    scene = Scene()
    for act in acts:
        await scene.act(act)
    await scene.end()


def cases() -> Iterator[list[Act]]:
    """Two or three at once, at every stage of a path's way out, each pausing where it matters most."""
    gc = Gc(TO_ITS_END)
    publishes: list[Act] = [Publish(0, TO_ITS_END), Wait(1), Publish(2, TO_ITS_END), Wait(30)]
    stages: list[list[Act]] = [
        [],
        publishes,  # app-0 is dead
        [*publishes, gc],  # and condemned
        [*publishes, gc, Wait(73)],
        [*publishes, gc, Wait(73), gc],  # and unlisted
    ]
    actors: list[Gc | Merge | Publish] = [
        gc,
        Gc(TO_ITS_END, skew=1),
        Publish(0, TO_ITS_END),
        Publish(3, TO_ITS_END, skew=-1),
        Merge(TO_ITS_END),
    ]
    aftermath: list[Act] = [gc, Wait(73), gc, Wait(1), gc]
    other_points = (TO_ITS_END, INDEX_WRITE)
    for stage, first, second in product(stages, actors, actors):
        for wait, point, other_point in product((0, 1, 30), POINTS, other_points):
            yield [
                *stage,
                replace(first, pause=point),
                Wait(wait),
                replace(second, pause=other_point),
                Wait(wait),
                Step(0, TO_ITS_END),
                Wait(wait),
                Step(0, TO_ITS_END),
                *aftermath,
            ]
    # A merge that has begun before what it takes in was condemned, and one of what another one is merging.
    for began, wait, point, seen in product(POINTS, (0, 1, 30), POINTS, POINTS):
        other = Gc(point) if wait else Merge(point)
        begin: list[Act] = [*publishes, Merge(began), gc, Wait(wait), other, Step(0, seen)]
        yield [*begin, Step(1, TO_ITS_END), Step(0, TO_ITS_END), Merge(TO_ITS_END), *aftermath]
        yield [*begin, Crash(0), Wait(73), Step(0, TO_ITS_END), *aftermath]
    # A publish that has begun before a path was condemned, and ends while the next gc is at work.
    for began, wait, point, seen in product(POINTS, (0, 1, 30), POINTS, POINTS):
        begin = [*publishes, Publish(0, began), gc, Wait(wait), Gc(point), Step(0, seen)]
        yield [*begin, Step(1, TO_ITS_END), Step(0, TO_ITS_END), *aftermath]
        yield [*begin, Crash(0), Wait(73), Step(0, TO_ITS_END), *aftermath]


@pytest.fixture(autouse=True, scope="module")
def two_are_many() -> Iterator[None]:
    """Whatever is listed is merged."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_plan, "MOST_LEFT", 0)
        yield


def test_no_pause_loses_what_counts() -> None:
    """Whoever pauses wherever, while another one works: nothing that counts is lost."""
    all_cases = list(cases())
    for case in all_cases if IS_SOAK else random.Random(1).sample(all_cases, 200):
        try:
            asyncio.run(play(case))
        except AssertionError as error:
            raise AssertionError(f"{error}, after {case}") from error


@given(acts=st.lists(ACTS, min_size=10, max_size=50))
@settings(max_examples=1000 if IS_SOAK else 50, deadline=None)
def test_no_interleaving_loses_what_counts(acts: list[Act]) -> None:
    """Publishers and gcs, any number of them, crashes and clocks an hour off: no live path is ever gone."""
    asyncio.run(play(acts))
