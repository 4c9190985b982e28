"""Problems of a cache: kind and place."""

from dataclasses import dataclass
from enum import StrEnum

from nixcache_oci.cache.inventory import Entry


class Kind(StrEnum):
    """What may be wrong."""

    SEGMENT = "segment"  # a segment's table or manifest cannot be read, or they do not match
    MALFORMED = "malformed"  # a narinfo or record cannot be parsed
    MISSING = "missing"  # the blob is missing
    CONTENT = "content"  # the blob has wrong or too few bytes, or cannot be read
    SIGNATURE = "signature"  # no known key signed it
    REFERENCE = "reference"  # a reference is neither here nor upstream
    UNKNOWN = "unknown"  # no upstream could say whether it has a reference


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A problem of a listed path, or of the segment that lists it."""

    path: str  # the store path, or the tag of a segment
    what: str  # description in one line
    kind: Kind
    segment: str  # tag of the segment that lists it
    lacks: str = ""  # base name of the store object that would repair it; empty if none can


def problem_of(entry: Entry, kind: Kind, what: str, lacks: str | None = None) -> Problem:
    """Make the problem of a listed path, which by default lacks itself."""
    path = entry.narinfo.store_path
    return Problem(str(path), what, kind, entry.listed_by, path.base_name if lacks is None else lacks)
