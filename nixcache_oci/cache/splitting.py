"""Splitting narinfos into segments: one, unless that is over a limit.

Source: design section 2, "Segment" and "Table".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.segment import MAX_LAYERS
from nixcache_oci.cache.table import MAX_TABLE_BYTES
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import render_document
from nixcache_oci.oci.manifest import MAX_WRITTEN_MANIFEST_BYTES

MAX_NARINFO_BYTES: Final = MAX_TABLE_BYTES - 4 * 1024 * 1024
"""Narinfos per table; the rest is for header and records."""

# The rest is for config, table and annotations.
_MAX_LAYER_BYTES: Final = MAX_WRITTEN_MANIFEST_BYTES - 64 * 1024


@dataclass(frozen=True, slots=True)
class SegmentContent:
    """What one segment will hold.

    Attributes:
        narinfos: references first.
        layers: every blob that they point into, once.
    """

    narinfos: tuple[NarInfo, ...]
    layers: tuple[Descriptor, ...]


def split(
    narinfos: Iterable[NarInfo],
    blobs: Mapping[Digest, Descriptor],
    *,
    max_layers: int = MAX_LAYERS - 1,
    max_bytes: int = MAX_NARINFO_BYTES,
    max_blob_bytes: int | None = None,
) -> list[SegmentContent]:
    """Split, keeping the order, into at least one segment, which may be empty: for the records.

    A manifest keeps to its limit, too. A narinfo that is over a limit alone gets a segment of its own, and is
    refused when that is written.

    Args:
        narinfos: references first, with URLs of this cache.
        blobs: descriptor of each blob that they point into.
        max_layers: of a segment, without its table.
        max_bytes: of all narinfos of a segment.
        max_blob_bytes: limit of the registry; None for none. Tables and manifests keep to it: narinfos
            compress to about half, which leaves space for records.
    """
    max_layer_bytes = _MAX_LAYER_BYTES
    if max_blob_bytes is not None:
        max_bytes, max_layer_bytes = min(max_bytes, max_blob_bytes), min(max_layer_bytes, max_blob_bytes)
    current = _Builder(max_layers, max_bytes, max_layer_bytes)
    contents: list[SegmentContent] = []
    for narinfo in narinfos:
        descriptor = blobs[NarUrl.parse(narinfo.url).blob]
        if not current.add(narinfo, descriptor):
            contents.append(current.finish())
            current = _Builder(max_layers, max_bytes, max_layer_bytes)
            current.add(narinfo, descriptor)
    return [*contents, current.finish()]


@dataclass(slots=True)
class _Builder:
    """Builds a segment's content."""

    max_layers: int
    max_bytes: int
    max_layer_bytes: int
    narinfos: list[NarInfo] = field(default_factory=list)
    layers: dict[Digest, Descriptor] = field(default_factory=dict)
    narinfo_bytes: int = 0
    layer_bytes: int = 0

    def add(self, narinfo: NarInfo, blob: Descriptor) -> bool:
        """Add one; False if that is over a limit."""
        layers, layer_bytes = len(self.layers), self.layer_bytes
        if blob.digest not in self.layers:
            layers += 1
            layer_bytes += len(render_document(blob.to_json(), "layer")) + len(",")
        narinfo_bytes = self.narinfo_bytes + len(narinfo.render().encode()) + len("\n")
        if self.narinfos and (
            layers > self.max_layers or narinfo_bytes > self.max_bytes or layer_bytes > self.max_layer_bytes
        ):
            return False
        self.narinfos.append(narinfo)
        self.layers[blob.digest] = blob
        self.narinfo_bytes, self.layer_bytes = narinfo_bytes, layer_bytes
        return True

    def finish(self) -> SegmentContent:
        return SegmentContent(tuple(self.narinfos), tuple(self.layers.values()))
