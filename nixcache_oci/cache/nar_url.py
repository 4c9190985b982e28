"""The place of a NAR, as in a narinfo's URL.

``nar/<64 hex>.nar.zst`` is a whole blob, ``nar/<64 hex>/<offset>-<length>.nar.zst`` a slice of a pack.
Signatures do not cover the URL, so it can encode the place: serving a NAR needs no look-up. Source: design
section 2, "Table".
"""

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest

MAX_PACK_BYTES: Final = 16 * 1024 * 1024
MAX_PACKED_NAR_BYTES: Final = 256 * 1024

# Nix picks the decompressor by Compression; the suffix is for people and other tools.
SUFFIXES: Final = {
    "none": "",
    "xz": ".xz",
    "bzip2": ".bz2",
    "gzip": ".gz",
    "zstd": ".zst",
    "br": ".br",
    "lzma": ".lzma",
    "lz4": ".lz4",
    "lzip": ".lzip",
    "compress": ".Z",
}

_MEDIA_TYPES: Final = MappingProxyType({"zstd": media_type.NAR_ZSTD, "xz": media_type.NAR_XZ})

_NUMBER = r"(?:0|[1-9][0-9]{0,17})"
_SHAPE = re.compile(
    rf"nar/(?P<hex>[0-9a-f]{{64}})(?:/(?P<offset>{_NUMBER})-(?P<length>{_NUMBER}))?\.nar(?P<suffix>\.[A-Za-z0-9]+)?"
)

# Narinfos are written in this order.
_SLICE_LINES = re.compile(
    rb"\nURL: nar/([0-9a-f]{64})/(0|[1-9][0-9]{0,7})-([1-9][0-9]{0,5})\.nar[^\n]*\nCompression: [^\n]*\n"
    rb"FileHash: ([^\n]+)\n"
)
_BLOB_LINES = re.compile(
    rb"\nURL: nar/([0-9a-f]{64})\.nar[^\n]*\nCompression: [^\n]*\n"
    rb"(?:FileHash: [^\n]*\n)?FileSize: ([0-9]{1,19})\n"
)


@dataclass(frozen=True, slots=True)
class NarUrl:
    """The place of one compressed NAR.

    Attributes:
        blob: the NAR blob, or the pack.
        offset: bytes into the pack, or None for a whole blob.
        length: bytes in the pack, or None for a whole blob.
        suffix: of the compression, such as ``.zst``, or an empty string.
    """

    blob: Digest
    offset: int | None = None
    length: int | None = None
    suffix: str = ""

    def __str__(self) -> str:
        slice_of_pack = "" if self.offset is None else f"/{self.offset}-{self.length}"
        return f"nar/{self.blob.hex}{slice_of_pack}.nar{self.suffix}"

    @classmethod
    def parse(cls, text: str) -> "NarUrl":
        """Read the URL of a narinfo, or the path of a request without its leading slash.

        Raises:
            FormatError: another form, a non-canonical number, or a slice beyond the limits of packs.
        """
        match = _SHAPE.fullmatch(text)
        if match is None:
            raise FormatError(f"NAR URL: not one of this cache: {text[:120]!r}")
        blob, suffix = Digest(match["hex"]), match["suffix"] or ""
        if match["offset"] is None:
            return cls(blob, suffix=suffix)
        offset, length = int(match["offset"]), int(match["length"])
        if not 0 < length <= MAX_PACKED_NAR_BYTES or offset + length > MAX_PACK_BYTES:
            raise FormatError(f"NAR URL: {offset}-{length} fits in no pack of at most {MAX_PACK_BYTES} bytes")
        return cls(blob, offset, length, suffix)


def hashed_slice_of(narinfo: bytes) -> tuple[Digest, int, int, bytes] | None:
    """Return pack, start, end and FileHash of a NAR in a pack, without parsing the rest.

    None for a blob of its own, without FileHash, or beyond the limits of packs.
    """
    match = _SLICE_LINES.search(narinfo)
    if match is None:
        return None
    start, length = int(match[2]), int(match[3])
    if length > MAX_PACKED_NAR_BYTES or start + length > MAX_PACK_BYTES:
        return None
    return Digest(match[1].decode()), start, start + length, match[4]


def sized_blob_of(narinfo: bytes) -> tuple[Digest, int] | None:
    """Return blob and FileSize of a NAR that has a blob of its own; None if either is absent."""
    match = _BLOB_LINES.search(narinfo)
    return (Digest(match[1].decode()), int(match[2])) if match is not None else None


def describe_nar(blob: Digest, compression: str, size: int) -> Descriptor:
    """Describe a NAR blob; only the narinfo names a compression without a media type."""
    return Descriptor(_MEDIA_TYPES.get(compression, media_type.NAR), blob, size)
