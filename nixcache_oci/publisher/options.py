"""Options of a publish, parsed and frozen."""

from dataclasses import dataclass, field
from typing import Final, Literal

from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.errors import UsageError
from nixcache_oci.nix.signature import PublicKey, SecretKey

Compression = Literal["zstd", "xz", "none"]

COMPRESSIONS: Final[dict[Compression, tuple[range, int]]] = {
    "zstd": (range(1, 20), 3),
    "xz": (range(10), 6),
    "none": (range(1), 0),
}
"""Valid levels, and the default."""


@dataclass(frozen=True, slots=True)
class NarEncoding:
    """How NARs are compressed; UsageError if the level is invalid."""

    compression: Compression = "zstd"  # as in narinfos
    level: int | None = None  # None for the default

    def __post_init__(self) -> None:
        allowed, _ = COMPRESSIONS[self.compression]
        if self.level is not None and self.level not in allowed:
            raise UsageError(
                f"--level {self.level}: {self.compression} takes {allowed[0]} to {allowed[-1]}"
                if len(allowed) > 1
                else f"--level {self.level}: without compression there are no levels"
            )

    @property
    def used_level(self) -> int:
        """The level, or the default."""
        return COMPRESSIONS[self.compression][1] if self.level is None else self.level


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """Options of a publish."""

    keys: tuple[SecretKey, ...] = ()  # that sign every listed path
    upstream_key_names: frozenset[str] = frozenset()  # of keys that sign what clients get elsewhere
    verify_upstream: bool = False  # whether to check that the upstreams have it
    encoding: NarEncoding = field(default_factory=NarEncoding)
    segments: SegmentOptions = field(default_factory=SegmentOptions)
    jobs: int = 2  # store objects staged at once
    is_strict: bool = False  # whether one path that cannot be sent keeps all others from being listed
    source: str | None = None  # of the paths, such as the address of a commit; for the table's header
    allow_unsigned: bool = False  # whether paths are listed that nobody vouches for
    is_merging: bool = False  # whether small segments are merged in the end
    allow_new_key: bool = False  # whether a key signs that a cache with keys does not record yet

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """The public keys of ``keys``."""
        return tuple(key.public_key for key in self.keys)
