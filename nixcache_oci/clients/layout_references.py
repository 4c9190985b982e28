"""What a manifest or image index in a layout names, by digest."""

from dataclasses import dataclass

from nixcache_oci.oci.descriptor import EMPTY_CONFIG
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.image_index import ImageIndex
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.oci.media_type import IMAGE_INDEXES, MANIFESTS


@dataclass(frozen=True, slots=True)
class References:
    """What one document names.

    Attributes:
        blobs: of a manifest: config and layers, but for the empty config. A layout keeps that one for ever:
            it weighs two bytes, and every manifest names it.
        manifests: of an image index: what it lists, as far as that is manifests or image indexes.
    """

    blobs: frozenset[Digest]
    manifests: frozenset[Digest]


def find_references(content: bytes, media_type: str) -> References:
    """Read what a document names.

    Args:
        content: the document.
        media_type: one of ``MANIFESTS`` or ``IMAGE_INDEXES``.

    Raises:
        FormatError: it is no such document.
    """
    if media_type in MANIFESTS:
        manifest = Manifest.parse(content)
        named = {each.digest for each in (manifest.config, *manifest.layers)}
        return References(frozenset(named - {EMPTY_CONFIG.digest}), frozenset())
    listed = ImageIndex.parse(content).manifests
    documents = {each.digest for each in listed if each.media_type in (*MANIFESTS, *IMAGE_INDEXES)}
    return References(frozenset({each.digest for each in listed} - documents), frozenset(documents))
