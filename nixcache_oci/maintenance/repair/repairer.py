"""The repair, put together: the check, the local store, what publishes again, and what rewrites segments."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

from nixcache_oci.cache.inventory import Inventory
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.clients.repository import Remover, Repository
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.problem import Problem
from nixcache_oci.maintenance.repair.repair_plan import (
    NeededObject,
    RepairPlan,
    choose_compression,
    find_leaving,
    find_needed,
    plan_repair,
    plan_replacement,
)
from nixcache_oci.maintenance.repair.segment_salvage import ReadSegment, read_segments
from nixcache_oci.maintenance.repair.writing import carry_out_repair
from nixcache_oci.maintenance.verifier import Verifier, read_entries
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.wording import counted, format_size

# What others publish meanwhile may refer to what has just left: another round takes that, too.
_ROUNDS: Final = 3

Say = Callable[[str], None]
"""Is given one line for people."""


@dataclass(frozen=True, slots=True)
class Resent:
    """What was published again, or would be."""

    sizes: Mapping[StorePath, int]  # bytes of each NAR that was sent, 0 for a path that was only signed again
    failed: Mapping[str, str] = field(default_factory=dict)  # why each of the others was not, by base name


class Resender(Protocol):
    """Publishes again what the local store still has."""

    @property
    def store(self) -> LocalStore | None:
        """Where paths may still be; None if this machine has no store."""

    @property
    def public_keys(self) -> Sequence[PublicKey]:
        """Of the keys that sign what is sent."""

    async def resend(
        self,
        infos: Sequence[PathInfo],
        lost: AbstractSet[str],
        compression: Literal["zstd", "xz", "none"],
        *,
        is_dry_run: bool,
    ) -> Resent:
        """Publish these with their signatures, and what they refer to.

        Args:
            infos: with the signatures to keep.
            lost: base names of paths whose bytes have to be sent, even though they are listed.
            compression: of NARs.
            is_dry_run: whether nothing is sent.

        Raises:
            Error: the repository refused, or the store could not answer.
        """


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """How to repair."""

    is_dry_run: bool
    force: bool  # also where over half of the paths would leave
    segments: SegmentOptions = field(default_factory=SegmentOptions)  # of those in place of others


@dataclass(slots=True)
class Outcome:
    """What came of it."""

    problems: list[Problem]  # found at first
    restored: list[str] = field(default_factory=list)  # base names of what was sent again
    unlisted: dict[str, str] = field(default_factory=dict)  # what no segment lists any more, and why
    left: list[Problem] = field(default_factory=list)  # problems that are still there
    is_stuck: bool = False  # whether somebody refused something that another round would try again


class Repairer:
    """Mends a cache, and says what it does, line by line.

    The verifier looks again after each step. The repository needs leave to push, unless this is a dry run.
    """

    def __init__(
        self,
        repository: Repository,
        remover: Remover,
        verifier: Verifier,
        read: Callable[[], Awaitable[Inventory]],
        resender: Resender,
        options: RepairOptions,
        say: Say,
    ) -> None:
        self._repository = repository
        self._remover = remover
        self._verifier = verifier
        self._read = read
        self._resender = resender
        self._options = options
        self._say = say
        self._would = "would be " if options.is_dry_run else ""

    async def run(self, inventory: Inventory, problems: list[Problem]) -> Outcome:
        """Mend what was found; Error if over half of the paths would leave, or a step failed: run again."""
        if inventory.tables.listing.version1 is not None:
            raise Error(
                f"{self._repository.name}: a version 1 cache: publish to it, which converts the"
                " entries that have their bytes, and leaves out the rest"
            )
        if inventory.tables.left_out is not None:
            # What is not read here may hold what seems to be missing.
            raise Error(f"{self._repository.name}: nothing was repaired: {inventory.tables.left_out}")
        outcome = Outcome(problems, left=problems)
        for _ in range(_ROUNDS):
            if outcome.is_stuck or not outcome.left or not await self._mend(inventory, outcome):
                break
            inventory = await self._read()
            outcome.left = await self._verifier.run(inventory)
        return outcome

    async def _mend(self, inventory: Inventory, outcome: Outcome) -> bool:
        """Do one round; tells whether anything was written."""
        segments = await self._read_segments(inventory)
        found = await self._find_locally(find_needed(outcome.left, segments))
        parts = frozenset(info.store_path.hash_part for _, info in found)
        if self._options.is_dry_run:
            restored = await self._restore(found, outcome)
            self._tell(await self._plan(segments, outcome.left, parts & restored), outcome)
            return False
        # First, for a registry may take no index that lists a segment whose manifest is gone.
        early = plan_replacement(segments, outcome.left, parts)
        await self._carry_out(early, outcome)
        restored = await self._restore(found, outcome)
        # A second look, before anything leaves: a registry may not have known a fresh blob.
        inventory = await self._read()
        outcome.left = await self._verifier.run(inventory)
        plan = await self._plan(await self._read_segments(inventory), outcome.left)
        await self._carry_out(plan, outcome)
        return bool(early.rewrites or early.tags or restored or plan.rewrites or plan.tags)

    async def _read_segments(self, inventory: Inventory) -> list[ReadSegment]:
        entries, _ = read_entries(inventory)
        return await read_segments(self._repository, inventory, entries)

    async def _restore(
        self, found: Sequence[tuple[NeededObject, PathInfo]], outcome: Outcome
    ) -> frozenset[HashPart]:
        """Send again what the local store has."""
        if not found:
            return frozenset()
        resent = await self._resender.resend(
            [info for _, info in found],
            {one.base_name for one, _ in found if one.has_lost_bytes},
            choose_compression(one for one, _ in found),
            is_dry_run=self._options.is_dry_run,
        )
        for base_name, reason in resent.failed.items():
            self._say(f"not restored {base_name}: {reason}")
        sizes = resent.sizes
        restored = set(sizes)
        for path in sorted(restored):
            size = f" ({format_size(sizes[path])})" if sizes.get(path) else ", signed again"
            self._say(f"{self._would}restored {path}{size}")
        outcome.restored += sorted(path.base_name for path in restored)
        return frozenset(path.hash_part for path in restored)

    async def _find_locally(self, wanted: Sequence[NeededObject]) -> list[tuple[NeededObject, PathInfo]]:
        """Find those whose NAR the local store has, and that somebody vouches for."""
        store = self._resender.store
        if store is None or not wanted:
            return []
        by_path = {
            StorePath.from_base_name(one.base_name, store.store_dir): one
            for one in wanted
            if all(narinfo.store_path.store_dir == store.store_dir for narinfo in one.listed)
        }
        invalid = set(await store.find_invalid(by_path))
        valid = [path for path in by_path if path not in invalid]
        found = []
        for info in await store.infos(valid) if valid else []:
            one = by_path[info.store_path]
            if one.nar_hashes and info.nar_hash not in one.nar_hashes:
                self._say(f"not restored {info.store_path}: the local store has another NAR of it")
                continue
            same = [narinfo for narinfo in one.listed if narinfo.nar_hash == info.nar_hash]
            sigs = dict.fromkeys([*info.sigs, *(sig for narinfo in same for sig in narinfo.sigs)])
            vouched = replace(info, sigs=tuple(sigs))
            if self._verifier.vouches(vouched) or self._verifier.knows(self._resender.public_keys):
                found.append((one, vouched))
            else:
                self._say(f"not restored {info.store_path}: no known key signed it, and none is given")
        return found

    async def _plan(
        self,
        segments: Sequence[ReadSegment],
        problems: Sequence[Problem],
        restored: AbstractSet[HashPart] = frozenset(),
    ) -> RepairPlan:
        most = find_leaving(segments, problems, restored)
        upstream = await self._verifier.has_upstream({part for _, part in most} - restored)
        leaving = find_leaving(segments, problems, restored | upstream)
        return plan_repair(segments, problems, leaving, restored)

    def _tell(self, plan: RepairPlan, outcome: Outcome) -> None:
        for segment in plan.lost:
            tag, paths = segment.tag, segment.segment.paths
            what = f"what it listed ({counted(paths, 'path')}) is unknown"
            why = f"nothing of it can be read, and {what}: publish again what you need"
            self._say(f"{self._would}unlisted {tag}: {why}")
            outcome.unlisted[tag] = why
        if self._options.is_dry_run and plan.refusal:
            self._say(f"needs --force: {plan.refusal}")
        for path, why in plan.unlisted.items():
            self._say(f"{self._would}unlisted {path}: {why}")
        outcome.unlisted |= plan.unlisted
        for tag, line in plan.left_out:
            self._say(f"{self._would}left out of {tag}: {line}")
        for orphan in plan.tags:
            self._say(f"{self._would}freed {orphan}: its manifest is gone")
        for path, tag in plan.dropped:
            self._say(f"{self._would}dropped {path} of {tag}: another listing of it is good")
        for rewrite in plan.rewrites:
            if rewrite.header is not None:
                listed = counted(len(rewrite.narinfos), "path")
                records = counted(len(rewrite.records), "record")
                self._say(f"{self._would}rewritten {rewrite.source.tag}: keeps {listed} and {records}")

    async def _carry_out(self, plan: RepairPlan, outcome: Outcome) -> None:
        if plan.refusal and not self._options.force:
            raise Error(f"{self._repository.name}: nothing was unlisted: {plan.refusal} (--force)")
        if not plan.rewrites and not plan.tags:
            return
        self._tell(plan, outcome)
        done = await carry_out_repair(self._repository, self._remover, plan, options=self._options.segments)
        outcome.is_stuck |= bool(done.refused) or not done.is_index_confirmed
        for tag, reason in done.refused:
            self._say(f"kept {tag}, marked as dead: it could not be deleted: {reason}")
        if not done.is_index_confirmed:
            self._say("others are writing the index at the same time: run this again")
