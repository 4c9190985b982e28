"""NAR blobs: one compressed NAR each, as a layer of a segment.

Source: design section 2, "Segment".
"""

from types import MappingProxyType
from typing import Final

from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

_TYPES: Final = MappingProxyType({"zstd": media_type.NAR_ZSTD, "xz": media_type.NAR_XZ})


def describe_nar(blob: Digest, compression: str, size: int) -> Descriptor:
    """Point at a NAR blob.

    Args:
        blob: its name.
        compression: as the narinfo names it; one without a media type of its own is told by the narinfo only.
        size: bytes in the blob.
    """
    return Descriptor(_TYPES.get(compression, media_type.NAR), blob, size)
