"""NAR, the archive format of Nix: a store object as one stream of bytes.

A NAR is a sequence of events. ``encode`` writes them, ``nar_reader.parse`` reads them; ``nar_files`` converts
from and to the file system, ``dump_tree`` from a tree in memory.

Grammar::

    "nix-archive-1" <object>
    <object> = "(" "type" "regular" ["executable" ""] "contents" <bytes> ")"
             | "(" "type" "symlink" "target" <bytes> ")"
             | "(" "type" "directory" {"entry" "(" "name" <bytes> "node" <object> ")"} ")"

Every word is a token, the parentheses too: its length in bytes (64 bits, little-endian), the bytes, and zeros
up to a multiple of eight. Entries are sorted by their raw names.

Source: Nix manual, "Nix Archive (NAR) format".
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from nixcache_oci.errors import FormatError

CHUNK_BYTES: Final = 256 * 1024
"""The most that is read or written at once."""

_LENGTH_BYTES = 8
_LARGE_BYTES = CHUNK_BYTES // 4


@dataclass(frozen=True, slots=True)
class StartFile:
    """A file begins; its contents follow as pieces of ``bytes``, none of them empty."""

    size: int  # bytes in all of its contents
    executable: bool  # by its owner


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link, as an event and in a tree."""

    target: bytes  # where it points, raw bytes

    def __post_init__(self) -> None:
        if not self.target or b"\0" in self.target:
            raise FormatError(f"NAR: no link can point at {self.target[:80]!r}")


@dataclass(frozen=True, slots=True)
class StartDirectory:
    """A directory begins; for each entry, sorted, ``EntryName`` and an object follow, then the end."""


@dataclass(frozen=True, slots=True)
class EntryName:
    """The name of the object that follows."""

    name: bytes  # raw bytes

    def __post_init__(self) -> None:
        if not self.name or self.name in {b".", b".."} or b"/" in self.name or b"\0" in self.name:
            raise FormatError(f"NAR: nothing in a directory can be named {self.name[:80]!r}")


@dataclass(frozen=True, slots=True)
class EndDirectory:
    """The innermost directory has no more entries."""


Event: TypeAlias = StartFile | bytes | Symlink | StartDirectory | EntryName | EndDirectory


@dataclass(frozen=True, slots=True)
class File:
    """A file in a tree."""

    contents: bytes = field(repr=False)
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory in a tree: its entries by their raw names, in any order."""

    entries: Mapping[bytes, "Node"]


Node: TypeAlias = File | Symlink | Directory


def encode(events: Iterable[Event]) -> Iterator[bytes]:
    """Write the NAR of one object, in pieces of at most ``CHUNK_BYTES``; small ones are gathered.

    Events have a valid order, names and sizes, and no piece is larger.
    """
    buffer = bytearray()
    for piece in _encode(events):
        if len(buffer) + len(piece) > CHUNK_BYTES or len(piece) > _LARGE_BYTES:
            if buffer:
                yield bytes(buffer)
                buffer.clear()
            if len(piece) > _LARGE_BYTES:
                yield piece
                continue
        buffer += piece
    yield bytes(buffer)


def dump_tree(tree: Node) -> Iterator[bytes]:
    """Write the NAR of a tree in memory, in pieces as of ``encode``; FormatError for an invalid file name."""
    return encode(_walk_tree(tree))


def token(data: bytes) -> bytes:
    """Write one token."""
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data + padding(len(data))


def padding(size: int) -> bytes:
    """Return the zeros that follow this many bytes."""
    return bytes(-size % _LENGTH_BYTES)


def words(*texts: str) -> bytes:
    """Write several tokens."""
    return b"".join(token(text.encode()) for text in texts)


MAGIC: Final = words("nix-archive-1")
OPEN: Final = words("(", "type")
CLOSE: Final = words(")")
TARGET: Final = words("target")
CONTENTS: Final = words("contents")
ENTRY_NAME: Final = words("(", "name")
NODE: Final = words("node")

_FILE = OPEN + words("regular") + CONTENTS
_EXECUTABLE = OPEN + words("regular", "executable", "") + CONTENTS
_SYMLINK = OPEN + words("symlink") + TARGET
_DIRECTORY = OPEN + words("directory")
_ENTRY = words("entry") + ENTRY_NAME


def _encode(events: Iterable[Event]) -> Iterator[bytes]:
    """Turn events into bytes; what ends an object also ends the entry that holds it."""
    yield MAGIC
    depth = 0
    left = 0
    file_end = b""
    for event in events:
        match event:
            case bytes():
                left -= len(event)
                yield event
                if not left:
                    yield file_end
            case EntryName():
                yield _ENTRY + token(event.name) + NODE
            case StartFile():
                left = event.size
                start = _EXECUTABLE if event.executable else _FILE
                file_end = padding(left) + _end(depth)
                yield start + left.to_bytes(_LENGTH_BYTES, "little")
                if not left:
                    yield file_end
            case Symlink():
                yield _SYMLINK + token(event.target) + _end(depth)
            case StartDirectory():
                depth += 1
                yield _DIRECTORY
            case EndDirectory():
                depth -= 1
                yield _end(depth)


def _end(depth: int) -> bytes:
    return CLOSE + CLOSE if depth else CLOSE


def _walk_tree(tree: Node) -> Iterator[Event]:
    # A stack instead of recursion: a tree may be deeper than Python's stack.
    todo: list[Node | EntryName | EndDirectory] = [tree]
    while todo:
        match todo.pop():
            case File() as file:
                yield StartFile(len(file.contents), file.executable)
                for start in range(0, len(file.contents), CHUNK_BYTES):
                    yield file.contents[start : start + CHUNK_BYTES]
            case Directory() as directory:
                yield StartDirectory()
                todo.append(EndDirectory())
                for name in sorted(directory.entries, reverse=True):
                    todo += (directory.entries[name], EntryName(name))
            case other:
                yield other
