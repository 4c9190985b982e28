"""Records: what a publish, a pin or an unpin leaves in a table, for gc.

Each is one stanza of ``Key: value`` lines. Unknown kinds and fields are kept. Every valid record can be read
back: a publish must not write a table that gc refuses.
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
"""Prefix of scopes whose publishes supersede only the names that they build, as narrowed runs do."""

UNRECORDED: Final = timedelta(days=9)
"""A publish that changes nothing leaves no record while its scope's last one is younger: a tenth of a scope's
default time to live. gc adds it to the time to live."""

# No control characters, and no lone surrogates, which UTF-8 cannot encode.
FIELD_VALUE: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]*")
"""What a field of a table can hold."""

_KINDS: Final = ("Publish", "Pin", "Unpin")
_REVISIONS = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class PublishRecord:
    """One job's publish: which roots it built, and which did not build.

    Attributes:
        scope: what later publishes supersede, such as a branch and system; no spaces.
        run: of the job; all records of one scope and run belong together; no spaces.
        time: of the publish, kept by every rewrite.
        roots: name and store path of each root; a name may contain spaces.
        failed: names of roots that did not build.
        is_partial: a narrowed run, which supersedes only its own names.
        extra: unknown fields.
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
        path: that is kept.
        time: of the pin.
        keep: ``until <time>``, ``for <N> revisions`` or ``forever``.
        extra: unknown fields.
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
        extra: unknown fields.
    """

    name: str
    time: datetime
    extra: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        _check_word("pin", self.name)


@dataclass(frozen=True, slots=True)
class UnknownRecord:
    """A record of an unknown kind, kept as it is; the first field tells the kind."""

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        if not self.fields or self.fields[0][0] in _KINDS:
            raise FormatError(f"record: not one of an unknown kind: {self.fields[:1]}")


Record = PublishRecord | PinRecord | UnpinRecord | UnknownRecord


def is_root_name(text: str) -> bool:
    """Check whether this is a valid name of a root."""
    return text != "" and FIELD_VALUE.fullmatch(text) is not None


def parse_record(fields: tuple[Field, ...]) -> Record:
    """Parse the fields of one stanza, at least one; the first key tells the kind.

    Raises:
        FormatError: a known kind with a malformed value.
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
    """Return the fields of a record's stanza."""
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
                # A quoted attribute may contain spaces, a store path may not.
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
