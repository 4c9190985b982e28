"""Checks that what a cache lists exists, and is intact, signed, and complete with its references."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Final

from nixcache_oci.cache.blob_damage import raise_unless_damage
from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.inventory import VERSION1, Entry, Inventory, choose_served
from nixcache_oci.cache.listing import read_union
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import SILENT, Progress
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import probe_blob
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError, UpstreamError
from nixcache_oci.maintenance.blob_check import check_content, check_start
from nixcache_oci.maintenance.problem import Kind, Problem, problem_of
from nixcache_oci.nix.closure import StoreObject
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, is_unsigned
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.nix.variants import is_accepted
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.wording import counted

_PARALLEL_REQUESTS: Final = 16
_PARALLEL_BLOBS: Final = 4


class Verifier:
    """Checks a cache, and again after repairs; what was found good is not checked twice.

    One of the keys must have signed each path that is not content-addressed; if there are none, any will do.
    With content, every byte is downloaded and hashed; otherwise each blob's first byte is read.

    Attributes:
        unsigned: paths that clients get without anyone vouching for them.
        foreign: paths that clients get signed, but by none of the keys.
    """

    def __init__(
        self,
        repository: Repository,
        upstreams: Upstreams,
        keys: Sequence[PublicKey],
        *,
        with_content: bool,
        progress: Progress = SILENT,
    ) -> None:
        self._repository = repository
        self._upstreams = upstreams
        self._keys = tuple(keys)
        self._with_content = with_content
        self._progress = progress
        self.unsigned = self.foreign = 0
        self._good: set[tuple[object, ...]] = set()
        self._there: set[Digest] = set()

    async def run(self, inventory: Inventory) -> list[Problem]:
        """Find all problems; Error if the repository could not answer."""
        entries, problems = await asyncio.to_thread(read_entries, inventory)
        # As `list` counts: each once, however many segments list it.
        self._progress.note(
            f"checking {counted(len({entry.narinfo.store_path for entry in entries}), 'path')}"
        )
        # A large cache takes seconds: long enough for connections to be dropped.
        problems += await asyncio.to_thread(self._check_signatures, entries)
        problems += await self._check_references(entries)
        problems += await self._check_blobs(entries)
        # Last, because what gc removes meanwhile is not missing.
        union = await read_union(self._repository, inventory.tables.listing.segments)
        blobs: defaultdict[str, set[Digest]] = defaultdict(set)
        for entry in entries:
            blobs[entry.listed_by].add(entry.url.blob)
        living = [segment for segment in union.index.segments if segment.condemned is None]
        with self._progress.stage("checking", "segment", len(living)) as stage:
            jobs = (self._check_segment(segment, blobs[str(segment.tag)]) for segment in living)
            found = await run_all(jobs, _PARALLEL_REQUESTS, stage)
        problems += [problem for some in found for problem in some]
        problems += [
            Problem(
                str(tag),
                "its manifest is gone, but its tag remains: gc refuses to run",
                Kind.SEGMENT,
                str(tag),
            )
            for tag in union.orphans
        ]
        listed = {VERSION1, INDEX_TAG, *map(str, union.orphans)}
        listed |= {str(segment.tag) for segment in union.index.segments}
        return sorted({problem for problem in problems if problem.segment in listed})

    async def has_upstream(self, parts: Iterable[HashPart]) -> set[HashPart]:
        """Find which of these an upstream has, or may have: it could not say."""

        async def find(part: HashPart) -> bool:
            try:
                return await self._upstreams.find(part) is not None
            except UpstreamError:
                return True

        asked = list(parts)
        answers = await run_all((find(part) for part in asked), _PARALLEL_REQUESTS)
        return {part for part, is_there in zip(asked, answers, strict=True) if is_there}

    def knows(self, keys: Iterable[PublicKey]) -> bool:
        """Tell whether one of these keys is known."""
        return any(key in self._keys for key in keys)

    def vouches(self, narinfo: StoreObject) -> bool:
        """Tell whether a known key signed it, or it is content-addressed."""
        return not self._keys or is_accepted(narinfo, self._keys)

    def _check_signatures(self, entries: Sequence[Entry]) -> list[Problem]:
        doubtful = [entry for entry in entries if not is_accepted(entry.narinfo, self._keys)]
        paths = {entry.narinfo.store_path for entry in doubtful}
        # Of several variants, what clients get decides: a path may be signed long after it was published.
        served = choose_served(entry for entry in entries if entry.narinfo.store_path in paths)
        refused = [one.narinfo for one in served if not is_accepted(one.narinfo, self._keys)]
        self.unsigned = sum(map(is_unsigned, refused))
        self.foreign = sum(bool(narinfo.sigs) for narinfo in refused)
        if not self._keys:
            return []  # there is none that could have signed them
        paths = {narinfo.store_path for narinfo in refused}
        what = "no known key signed it"
        return [
            problem_of(entry, Kind.SIGNATURE, what) for entry in doubtful if entry.narinfo.store_path in paths
        ]

    async def _check_references(self, entries: Iterable[Entry]) -> list[Problem]:
        entries = list(entries)
        listed = {entry.narinfo.store_path.hash_part for entry in entries}
        referrers: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            for reference in entry.narinfo.references:
                if HashPart.of(reference) not in listed:
                    referrers[reference].append(entry)

        async def find(reference: str) -> tuple[Kind, str] | None:
            try:
                found = await self._upstreams.find(HashPart.of(reference))
            except UpstreamError as error:
                return Kind.UNKNOWN, f"and no upstream could say whether it has that: {error}"
            return None if found is not None else (Kind.REFERENCE, "which is neither here nor upstream")

        with self._progress.stage("looking upstream", "path", len(referrers)) as stage:
            answers = await run_all(map(find, referrers), _PARALLEL_REQUESTS, stage)
        return [
            problem_of(entry, answer[0], f"it refers to {reference}, {answer[1]}", reference)
            for (reference, group), answer in zip(referrers.items(), answers, strict=True)
            if answer is not None
            for entry in group
        ]

    async def _check_blobs(self, entries: Iterable[Entry]) -> list[Problem]:
        by_blob: defaultdict[Digest, list[Entry]] = defaultdict(list)
        for entry in entries:
            by_blob[entry.url.blob].append(entry)
        asked = {
            blob: group
            for blob, group in by_blob.items()
            if not all(_claims(entry.narinfo) in self._good for entry in group)
        }
        with self._progress.stage("checking", "blob", len(asked)) as stage:
            check = partial(check_content, stage=stage) if self._with_content else check_start
            at_once = _PARALLEL_BLOBS if self._with_content else _PARALLEL_REQUESTS
            jobs = (check(self._repository, blob, group) for blob, group in asked.items())
            found = await run_all(jobs, at_once, stage)
        for group, problems in zip(asked.values(), found, strict=True):
            if not problems:
                self._good |= {_claims(entry.narinfo) for entry in group}
                self._there.add(group[0].url.blob)
        return [problem for some in found for problem in some]

    async def _check_segment(self, segment: Segment, blobs: AbstractSet[Digest]) -> list[Problem]:
        """Check that the manifest exists, and has all blobs that the table refers to."""
        tag = str(segment.tag)

        def problem(what: str) -> list[Problem]:
            return [Problem(tag, what, Kind.SEGMENT, tag)]

        try:
            stored = await self._repository.get_manifest(str(segment.manifest))
        except NotFoundError:
            return problem("its manifest is gone")
        try:
            if Segment.from_manifest(stored.content).table != segment.table:
                return problem("its manifest names another table than the index")
        except FormatError as error:
            return problem(str(error))
        manifest = Manifest.parse(stored.content)
        held = {layer.digest for layer in manifest.layers}
        if blobs - held:
            return problem(f"blob {min(blobs - held)} has NARs of it, but is in no layer of its manifest")
        for digest in {manifest.config.digest, *held} - blobs - self._there:
            try:
                await probe_blob(self._repository, digest)
            except (DigestError, RegistryError) as error:
                await raise_unless_damage(self._repository, error)
                what = "its table" if digest == segment.table else "of its manifest"
                is_missing = isinstance(error, NotFoundError)
                return problem(
                    f"blob {digest}, {what}, {'is missing' if is_missing else f'cannot be read: {error}'}"
                )
            self._there.add(digest)
        return []


def read_entries(inventory: Inventory) -> tuple[list[Entry], list[Problem]]:
    """Read every narinfo strictly; also returns what cannot be read, tables and records included."""
    listing = inventory.tables.listing
    problems = [Problem(tag, reason, Kind.SEGMENT, tag) for tag, reason in inventory.tables.damaged.items()]
    if inventory.tables.left_out is not None:
        problems.append(Problem(INDEX_TAG, inventory.tables.left_out, Kind.SEGMENT, INDEX_TAG))
    entries: list[Entry] = []
    sources: list[tuple[Digest, Segment | None]] = [(one.table, one) for one in listing.segments]
    if listing.version1 is not None:
        sources.append((listing.version1, None))
    for table, segment in sources:
        file = inventory.tables.tables[table]
        tag = str(segment.tag) if segment is not None else VERSION1
        try:
            file.records()
        except FormatError as error:
            problems.append(Problem(tag, f"a record cannot be read: {error}", Kind.MALFORMED, tag))
        try:
            narinfos = list(file.narinfos())
            for narinfo in narinfos:
                NarUrl.parse(narinfo.url)
        except FormatError as error:
            # gc reads a table as a whole, or not at all.
            narinfos, malformed = _read_one_by_one(file, tag)
            problems += malformed or [
                Problem(tag, f"its table cannot be read as a whole: {error}", Kind.MALFORMED, tag)
            ]
        entries += (Entry(narinfo, segment) for narinfo in narinfos)
    return entries, problems


def _read_one_by_one(file: TableFile, tag: str) -> tuple[list[NarInfo], list[Problem]]:
    narinfos: list[NarInfo] = []
    problems: list[Problem] = []
    for row in range(file.count):
        try:
            narinfo = NarInfo.parse(file.text(row))
            NarUrl.parse(narinfo.url)
        except FormatError as error:
            path, base_name = _name(file, row)
            what = f"its narinfo cannot be read: {error}"
            problems.append(Problem(path, what, Kind.MALFORMED, tag, base_name))
        else:
            narinfos.append(narinfo)
    return narinfos, problems


def _name(file: TableFile, row: int) -> tuple[str, str]:
    """Return the store path of a malformed narinfo, and its base name, empty if that is malformed too."""
    first = file.text(row).partition(b"\n")[0]
    path = first.partition(b": ")[2].decode(errors="replace")
    try:
        return path, StorePath.parse(path).base_name
    except FormatError:
        return path or "a narinfo over the limit", ""


def _claims(narinfo: NarInfo) -> tuple[object, ...]:
    """Return what a narinfo says of its bytes."""
    return narinfo.url, narinfo.compression, narinfo.nar_hash, narinfo.nar_size, narinfo.file_size
