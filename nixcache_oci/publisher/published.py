"""What came of a publish."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from nixcache_oci.cache.segment import Segment
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.publisher.migration import Conversion


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it.

    Attributes:
        listed: narinfos that are listed now and were not before, or not signed by every key.
        failed: why each of the others is not listed, by base name.
        segments: what was added to the cache.
        is_index_confirmed: whether the last look at the index showed it; if not, the segments' own tags hold
            them until another writer lists them.
        conversion: what became of a version 1 cache, where there was one.
        is_needless: whether nothing was written, for all of it is listed and recorded.
    """

    listed: tuple[NarInfo, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    is_index_confirmed: bool = True
    conversion: Conversion | None = None
    is_needless: bool = False

    def followed_by(self, more: Self) -> Self:
        """Put together what two rounds did."""
        return replace(
            more,
            listed=(*self.listed, *more.listed),
            failed={**self.failed, **more.failed},
            segments=(*self.segments, *more.segments),
            conversion=self.conversion or more.conversion,
        )
