"""Reading a NAR: strict, streaming, in bounded memory.

Only the form that Nix writes is accepted, so that reading and writing keep the hash. Fixed parts of the
format are compared as raw bytes, tokens with their lengths and padding.

Source: as ``nar``.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nar import (
    CLOSE,
    CONTENTS,
    ENTRY_NAME,
    MAGIC,
    NODE,
    OPEN,
    TARGET,
    EndDirectory,
    EntryName,
    Event,
    StartDirectory,
    StartFile,
    Symlink,
    padding,
    words,
)
from nixcache_oci.wording import counted

MAX_NAME_BYTES: Final = 4096
"""Limit of a name or a link's target: no path is longer on Linux or macOS."""

MAX_DEPTH: Final = MAX_NAME_BYTES // 2
"""Nested directories: no deeper path can be opened, with a name and a slash for each."""

_MAX_WORD_BYTES = 16
_LENGTH_BYTES = 8
_EXECUTABLE_REST = words("") + CONTENTS


def parse(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Read a NAR from pieces of any size; it is valid only once this ends without an error.

    Raises FormatError if it is no NAR, truncated, with trailing bytes, or over ``MAX_NAME_BYTES`` or
    ``MAX_DEPTH``.
    """
    source = _Source(chunks)
    names: list[bytes] = []  # for each directory that is open, its last name
    source.expect(MAGIC)
    while True:
        yield from _start_object(source, names)
        while names:
            word = source.read_word()
            if word == b"entry":
                yield _start_entry(source, names)
                break
            if word != b")":
                raise source.error(f"expected an entry or the end of a directory, got {word!r}")
            names.pop()
            yield EndDirectory()
            _end_entry(source, names)
        else:
            source.expect_end()
            return


def _start_object(source: "_Source", names: list[bytes]) -> Iterator[Event]:
    """Read a whole file or symlink, or the start of a directory."""
    source.expect(OPEN)
    kind = source.read_word()
    if kind == b"directory":
        if len(names) == MAX_DEPTH:
            raise source.error(f"more than {MAX_DEPTH} nested directories")
        names.append(b"")
        yield StartDirectory()
        return
    if kind == b"regular":
        yield from _read_file(source)
    elif kind == b"symlink":
        source.expect(TARGET)
        yield Symlink(source.read_token(MAX_NAME_BYTES))
    else:
        raise source.error(f"unknown type of file {kind!r}")
    source.expect(CLOSE)
    _end_entry(source, names)


def _read_file(source: "_Source") -> Iterator[Event]:
    word = source.read_word()
    executable = word == b"executable"
    if executable:
        source.expect(_EXECUTABLE_REST)
    elif word != b"contents":
        raise source.error(f"expected the contents of a file, got {word!r}")
    size = source.read_length()
    yield StartFile(size, executable)
    yield from source.read_pieces(size)
    source.expect(padding(size))


def _start_entry(source: "_Source", names: list[bytes]) -> EntryName:
    source.expect(ENTRY_NAME)
    name = source.read_token(MAX_NAME_BYTES)
    if name <= names[-1]:
        raise source.error(f"{name[:80]!r} does not sort after {names[-1][:80]!r}")
    source.expect(NODE)
    names[-1] = name
    return EntryName(name)


def _end_entry(source: "_Source", names: list[bytes]) -> None:
    if names:
        source.expect(CLOSE)


class _Source:
    """Reads bytes from pieces, and tracks the position for errors."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._used = 0
        self._before = 0

    def error(self, message: str) -> FormatError:
        return FormatError(f"NAR: {message}, before byte {self._before + self._used}")

    def expect(self, expected: bytes) -> None:
        if self._read(len(expected)) != expected:
            raise self.error("not in the form that Nix writes")

    def expect_end(self) -> None:
        if self._used < len(self._chunk) or self._next_chunk():
            raise self.error("something follows the end")

    def read_length(self) -> int:
        return int.from_bytes(self._read(_LENGTH_BYTES), "little")

    def read_word(self) -> bytes:
        return self.read_token(_MAX_WORD_BYTES)

    def read_token(self, limit: int) -> bytes:
        size = self.read_length()
        if size > limit:
            raise self.error(f"a token of {counted(size, 'byte')} where at most {limit} make sense")
        token = self._read(size)
        self.expect(padding(size))
        return token

    def read_pieces(self, size: int) -> Iterator[bytes]:
        """Yield this many bytes in pieces as they arrive."""
        while size:
            self._need_chunk()
            piece = self._chunk[self._used : self._used + size]
            self._used += len(piece)
            size -= len(piece)
            yield piece

    def _read(self, size: int) -> bytes:
        end = self._used + size
        if end <= len(self._chunk):
            data = self._chunk[self._used : end]
            self._used = end
            return data
        return b"".join(self.read_pieces(size))

    def _need_chunk(self) -> None:
        if self._used == len(self._chunk) and not self._next_chunk():
            raise self.error("cut short")

    def _next_chunk(self) -> bool:
        self._before += len(self._chunk)
        self._used = 0
        self._chunk = next(filter(None, self._chunks), b"")
        return bool(self._chunk)
