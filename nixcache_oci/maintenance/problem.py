"""What may be wrong with a cache, and where."""

from dataclasses import dataclass
from enum import StrEnum

from nixcache_oci.cache.inventory import Entry


class Kind(StrEnum):
    """What may be wrong.

    Attributes:
        SEGMENT: the table or manifest of a segment cannot be had, or they do not belong together.
        MALFORMED: a narinfo or record cannot be read.
        MISSING: the blob is not there.
        CONTENT: the blob has other bytes, or fewer, or they cannot be read.
        SIGNATURE: nobody who is known vouches for it.
        REFERENCE: what it refers to is nowhere.
        UNKNOWN: nobody could say where what it refers to is.
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
    """Something that is wrong with a listed path, or with the segment that lists it.

    Attributes:
        path: the store path, or the tag of a segment.
        what: in one line.
        kind: of problem.
        segment: tag of the segment that lists it.
        lacks: base name of the store object that would mend it; empty where none can.
    """

    path: str
    what: str
    kind: Kind
    segment: str
    lacks: str = ""


def problem_of(entry: Entry, kind: Kind, what: str, lacks: str | None = None) -> Problem:
    """Name what is wrong with a listed path; it lacks itself unless told."""
    path = entry.narinfo.store_path
    return Problem(str(path), what, kind, entry.listed_by, path.base_name if lacks is None else lacks)
