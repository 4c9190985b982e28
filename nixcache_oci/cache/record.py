"""Records: what a publish, a pin or an unpin left in a table, for gc to count.

Each is one stanza of ``Key: value`` lines. Kinds and fields that this version does not know are kept.
What can be made can be read again, for nobody may publish a table that gc then refuses.
Source: design section 2, "Table".
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from nixcache_oci.cache.timestamp import format_time, parse_time
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import StorePath

Field = tuple[str, str]

PUSH_SCOPE_START: Final = "push/"
"""Scopes whose publishes displace only the names that they build, as narrowed runs do."""

UNRECORDED: Final = timedelta(days=9)
"""A publish that changes nothing leaves no record while its scope's last one is younger: a tenth of the usual
time to live of a scope. gc waits as much longer before a scope is over."""

# Neither a line break nor half of a surrogate pair, which UTF-8 cannot write.
FIELD_VALUE: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]*")
"""What a field of a table can hold."""

_KINDS: Final = ("Publish", "Pin", "Unpin")
_REVISIONS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class PublishRecord:
    """One job's publish: which roots it built, and which did not build.

    Attributes:
        scope: what later publishes supersede, such as a branch and system; no spaces.
        run: the job's run; all records of one scope and run belong together; no spaces.
        time: when it published, and it keeps that time through every rewrite.
        roots: name and store path of each root; a name may hold spaces.
        failed: names of roots that did not build.
        is_partial: a narrowed run, which displaces only its own names.
        extra: fields that this version does not know.
    """

    scope: str
    run: str
    time: datetime
    roots: tuple[tuple[str, StorePath], ...] = ()
    failed: tuple[str, ...] = ()
    is_partial: bool = False
    extra: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        _check_word("scope", self.scope)
        _check_word("run", self.run)
        for name in (*(name for name, _ in self.roots), *self.failed):
            if not is_root_name(name):
                raise FormatError(f"record: no root can have the name {name[:80]!r}")


@dataclass(frozen=True, slots=True)
class PinRecord:
    """A store path that is kept under a name.

    Attributes:
        name: of the pin; no spaces.
        path: what is kept.
        time: when it was pinned.
        keep: ``until <time>``, ``for <N> revisions`` or ``forever``.
        extra: fields that this version does not know.
    """

    name: str
    path: StorePath
    time: datetime
    keep: str
    extra: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        _check_word("pin", self.name)
        if not _is_keep(self.keep.split(" ")):
            raise FormatError(
                f"record: a pin is kept until <time>, for <N> revisions, or forever, not {self.keep[:80]!r}"
            )

    @property
    def keep_text(self) -> str:
        """``keep`` as people read it: the record has ``for 1 revisions``."""
        return "for 1 revision" if self.keep == "for 1 revisions" else self.keep


@dataclass(frozen=True, slots=True)
class UnpinRecord:
    """The end of a pin.

    Attributes:
        name: of the pin; no spaces.
        time: when it ended.
        extra: fields that this version does not know.
    """

    name: str
    time: datetime
    extra: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        _check_word("pin", self.name)


@dataclass(frozen=True, slots=True)
class UnknownRecord:
    """A record of a kind that this version does not know, kept as it is.

    Attributes:
        fields: at least one, the first of which tells the kind.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if not self.fields or self.fields[0][0] in _KINDS:
            raise FormatError(f"record: not one of an unknown kind: {self.fields[:1]}")


Record = PublishRecord | PinRecord | UnpinRecord | UnknownRecord


def is_root_name(text: str) -> bool:
    """Tell whether a record can hold a root, or the failure of one, under this name."""
    return text != "" and FIELD_VALUE.fullmatch(text) is not None


def parse_record(fields: tuple[Field, ...]) -> Record:
    """Read one stanza; its first key tells the kind.

    Args:
        fields: at least one.

    Raises:
        FormatError: a known kind with a value that breaks its form.
    """
    (kind, value), rest = fields[0], fields[1:]
    words = value.split(" ")
    match kind, words:
        case "Publish", [scope, run, time]:
            return _parse_publish(scope, run, parse_time(time), rest)
        case "Pin", [name, path, time, *keep]:
            return PinRecord(name, StorePath.parse(path), parse_time(time), " ".join(keep), rest)
        case "Unpin", [name, time]:
            return UnpinRecord(name, parse_time(time), rest)
        case _ if kind in _KINDS:
            raise FormatError(f"record: malformed {kind}: {value[:200]!r}")
    return UnknownRecord(fields)


def record_fields(record: Record) -> tuple[Field, ...]:
    """Turn a record into the fields of its stanza."""
    match record:
        case PublishRecord():
            return (
                ("Publish", f"{record.scope} {record.run} {format_time(record.time)}"),
                *(("Root", f"{name} {path}") for name, path in record.roots),
                *(("Failed", name) for name in record.failed),
                *((("Partial", "yes"),) if record.is_partial else ()),
                *record.extra,
            )
        case PinRecord():
            value = f"{record.name} {record.path} {format_time(record.time)} {record.keep}"
            return (("Pin", value), *record.extra)
        case UnpinRecord():
            return (("Unpin", f"{record.name} {format_time(record.time)}"), *record.extra)
        case UnknownRecord():
            return record.fields


def _parse_publish(scope: str, run: str, time: datetime, fields: tuple[Field, ...]) -> PublishRecord:
    roots: list[tuple[str, StorePath]] = []
    failed: list[str] = []
    extra: list[Field] = []
    is_partial = False
    for key, value in fields:
        match key:
            case "Root":
                # A quoted attribute may hold spaces, a store path may not.
                name, _, path = value.rpartition(" ")
                if not name:
                    raise FormatError(f"record: Root needs a name and a store path: {value[:200]!r}")
                roots.append((name, StorePath.parse(path)))
            case "Failed":
                failed.append(value)
            case "Partial":
                is_partial = value == "yes"
            case _:
                extra.append((key, value))
    return PublishRecord(scope, run, time, tuple(roots), tuple(failed), is_partial, tuple(extra))


def _is_keep(words: list[str]) -> bool:
    match words:
        case ["forever"]:
            return True
        case ["until", time]:
            parse_time(time)
            return True
        case ["for", count, "revisions"]:
            return _REVISIONS.fullmatch(count) is not None
    return False


def _check_word(what: str, text: str) -> None:
    if not text or " " in text or not FIELD_VALUE.fullmatch(text):
        raise FormatError(
            f"record: the name of a {what} has neither spaces nor control characters, and is not empty: "
            f"{text[:80]!r}"
        )
