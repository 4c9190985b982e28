"""Problems of a cache: kind and place."""

from dataclasses import dataclass
from enum import StrEnum

from nixcache_oci.cache.inventory import Entry


class Kind(StrEnum):
    """What may be wrong.

    Attributes:
        SEGMENT: a segment's table or manifest cannot be read, or they do not match.
        MALFORMED: a narinfo or record cannot be parsed.
        MISSING: the blob is missing.
        CONTENT: the blob has wrong or too few bytes, or cannot be read.
        SIGNATURE: no known key signed it.
        REFERENCE: a reference is neither here nor upstream.
        UNKNOWN: no upstream could say whether it has a reference.
    """

    SEGMENT = "segment"
    MALFORMED = "malformed"
    MISSING = "missing"
    CONTENT = "content"
    SIGNATURE = "signature"
    REFERENCE = "reference"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A problem of a listed path, or of the segment that lists it.

    Attributes:
        path: the store path, or the tag of a segment.
        what: description in one line.
        kind: of problem.
        segment: tag of the segment that lists it.
        lacks: base name of the store object that would repair it; empty if none can.
    """

    path: str
    what: str
    kind: Kind
    segment: str
    lacks: str = ""


def problem_of(entry: Entry, kind: Kind, what: str, lacks: str | None = None) -> Problem:
    """Make the problem of a listed path, which by default lacks itself."""
    path = entry.narinfo.store_path
    return Problem(str(path), what, kind, entry.listed_by, path.base_name if lacks is None else lacks)
