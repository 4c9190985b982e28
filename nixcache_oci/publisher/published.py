"""The result of a publish."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from nixcache_oci.cache.segment import Segment
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.publisher.migration import Conversion


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a publish.

    Attributes:
        listed: narinfos that were not listed before, or not signed by every key.
        failed: why others are not listed, by base name.
        segments: that were added.
        is_index_confirmed: whether the index, as read back, lists them; if not, their own tags keep them
            until another writer lists them.
        conversion: of a version 1 cache, if any.
        is_needless: nothing was written, because all is listed and recorded.
    """

    listed: tuple[NarInfo, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    is_index_confirmed: bool = True
    conversion: Conversion | None = None
    is_needless: bool = False

    def followed_by(self, more: Self) -> Self:
        """Combine the results of two rounds."""
        return replace(
            more,
            listed=(*self.listed, *more.listed),
            failed={**self.failed, **more.failed},
            segments=(*self.segments, *more.segments),
            conversion=self.conversion or more.conversion,
        )
