"""What another binary cache offers to an import: its narinfos, and what is wrong with some of them."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.cache.parallel import run_all
from nixcache_oci.cache.progress import SILENT, Progress, Stage
from nixcache_oci.clients.binary_cache.source import BinaryCache, find_narinfo
from nixcache_oci.errors import FormatError, UpstreamNotFoundError
from nixcache_oci.nix.nar_check import can_unpack
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.nix.variants import is_accepted
from nixcache_oci.publisher.publish_plan import is_upstreams

_REQUESTS_AT_ONCE: Final = 16
# Of what does not compress, a little is added by every method.
_MOST_ADDED_BYTES: Final = 64 * 1024
_MOST_ADDED_SHARE: Final = 16


@dataclass(slots=True)
class Candidates:
    """What the source has."""

    narinfos: dict[str, NarInfo] = field(default_factory=dict)  # of the source, by base name
    bad: dict[str, str] = field(default_factory=dict)  # why others cannot be imported, by a name for people
    bad_parts: set[HashPart] = field(default_factory=set)  # hash parts of the bad ones

    @property
    def absent(self) -> set[str]:
        """Base names of references that the source lacks."""
        return {one for one in self._foreign() if HashPart.of(one) not in self.bad_parts}

    @property
    def bad_references(self) -> set[str]:
        """Base names of references that are bad."""
        return {one for one in self._foreign() if HashPart.of(one) in self.bad_parts}

    def _foreign(self) -> set[str]:
        named = {reference for narinfo in self.narinfos.values() for reference in narinfo.references}
        return named - self.narinfos.keys()


async def read_candidates(
    source: BinaryCache,
    wanted: Iterable[StorePath | HashPart],
    store_dir: str,
    keys: Sequence[PublicKey],
    upstream_key_names: AbstractSet[str],
    progress: Progress = SILENT,
) -> Candidates:
    """Read the narinfos of these closures, or of all if none is wanted.

    If there are keys, each path must be signed by one of them, or be content-addressed, or an upstream's.
    UpstreamError if the source could not be read.
    """
    reader = _ClosureReader(source, store_dir, keys, upstream_key_names)
    level = {one.hash_part if isinstance(one, StorePath) else one: str(one) for one in wanted}
    if not level:
        for name in await source.list_names() or []:
            try:
                level[HashPart(name)] = name
            except FormatError as error:
                reader.candidates.bad[f"{name}.narinfo"] = str(error)
    with progress.stage(f"reading {source.name}", "narinfo") as stage:
        await reader.read(level, stage)
    return reader.candidates


class _ClosureReader:
    """Follows references, level by level."""

    def __init__(
        self,
        source: BinaryCache,
        store_dir: str,
        keys: Sequence[PublicKey],
        upstream_key_names: AbstractSet[str],
    ) -> None:
        self._source = source
        self._store_dir = store_dir
        self._keys = keys
        self._upstream_key_names = upstream_key_names
        self._asked: set[HashPart] = set()
        self.candidates = Candidates()

    async def read(self, level: Mapping[HashPart, str], stage: Stage) -> None:
        wanted = dict(level)
        while level:
            self._asked |= level.keys()
            reading = (self._read_one(part, wanted.get(part)) for part in sorted(level))
            found = await run_all(reading, _REQUESTS_AT_ONCE, stage)
            level = {
                part: reference
                for narinfo in found
                if narinfo is not None
                for reference in narinfo.references
                if (part := HashPart.of(reference)) not in self._asked
            }

    async def _read_one(self, part: HashPart, wanted: str | None) -> NarInfo | None:
        name = f"{part}.narinfo"
        try:
            narinfo = await find_narinfo(self._source, part)
            if narinfo is None:
                if wanted is not None:
                    self._leave_out(part, wanted, f"{self._source.name} has no {name}")
                return None
            name = narinfo.store_path.base_name
            self._check(narinfo, wanted)
        except (FormatError, UpstreamNotFoundError) as error:
            self._leave_out(part, name, str(error))
            return None
        self.candidates.narinfos[name] = narinfo
        return narinfo

    def _leave_out(self, part: HashPart, name: str, reason: str) -> None:
        self.candidates.bad[name] = reason
        self.candidates.bad_parts.add(part)

    def _check(self, narinfo: NarInfo, wanted: str | None) -> None:
        path = narinfo.store_path
        if wanted not in (None, path.hash_part, str(path)):
            raise FormatError(f"it is not {wanted}")
        if path.store_dir != self._store_dir:
            raise FormatError(f"its path is in {path.store_dir[:80]}, not in {self._store_dir}")
        if is_upstreams(narinfo, self._upstream_key_names):
            return  # it is not imported
        if self._keys and not is_accepted(narinfo, self._keys):
            raise FormatError("none of the keys in NIXCACHE_PUBLIC_KEYS signed it")
        if narinfo.file_hash is None and not can_unpack(narinfo.compression):
            raise FormatError(
                f"it has no FileHash, and {narinfo.compression} is not unpacked here: nothing vouches for it"
            )
        if narinfo.file_size is not None and narinfo.file_size > most_file_bytes(narinfo):
            raise FormatError(f"its FileSize is {narinfo.file_size}, and its NarSize {narinfo.nar_size}")


def most_file_bytes(narinfo: NarInfo) -> int:
    """Return the limit of a compressed NAR: space is reserved by NarSize."""
    return narinfo.nar_size + narinfo.nar_size // _MOST_ADDED_SHARE + _MOST_ADDED_BYTES
