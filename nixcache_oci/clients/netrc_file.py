"""Entries in a netrc file: ours is put in, and all others stay byte for byte.

Sources: curl's manual, ".netrc"; Python's ``netrc``, which reads upstreams' passwords here.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.rooted_path import RootedPath, read_small
from nixcache_oci.errors import Error, FormatError

MOST_BYTES: Final = 1024 * 1024
LOGIN: Final = "nixcache-oci"
"""The user of our entries; the proxy takes any."""

_OWN_MODE: Final = 0o600
_KEPT_MODE: Final = 0o770
_WORD: Final = re.compile(r'"(?:\\.|[^"\\])*"|\S+', re.DOTALL)
_LINE_END: Final = re.compile(r"\n|\Z")
_MACRO_END: Final = re.compile(r"\n[ \t\r]*\n|\Z")
# Quotes and backslashes mean different things to the programs that read these files.
_PASSWORD: Final = re.compile(r"(?!#)[!#-\[\]-~]+")


def is_password(text: str) -> bool:
    """Check whether every program reads a password alike."""
    return _PASSWORD.fullmatch(text) is not None


def write_entry(path: Path, host: str, password: str) -> None:
    """Put an entry into a file, which only its owner can read then; Error if that cannot be done."""
    if path.is_symlink():
        raise Error(f"{path} is a link to {path.readlink()}: name that file, or another one, with --file")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content, status = (read_small(path, MOST_BYTES), path.stat()) if path.exists() else (b"", None)
        text = put_entry(content.decode(errors="surrogateescape"), host, password)
        # A group may have to read it, such as that of builds; others never.
        mode = _OWN_MODE if status is None else (status.st_mode & _KEPT_MODE) | _OWN_MODE
        folder = RootedPath(path.parent)
        write_file(folder / path.name, [text.encode(errors="surrogateescape")], folder, mode=mode)
        if status is not None and os.geteuid() == 0:
            os.chown(path, status.st_uid, status.st_gid)
        folder.sync()
    except FormatError as error:
        raise Error(f"{path}: {error}; mend it, or name another file with --file") from None
    except OSError as error:
        raise Error(f"{path}: {error.strerror}; name another file with --file") from None


def put_entry(text: str, host: str, password: str) -> str:
    """Replace our entry for a host, or add one, before all others.

    Raises FormatError if the text cannot be read, or another user has an entry for the host: of two, programs
    read the first.
    """
    if len(text) > MOST_BYTES:
        raise FormatError(f"it is over {MOST_BYTES} bytes")
    kept, position = [], 0
    for entry in _entries(text):
        if entry.host.lower() != host.lower():
            continue
        if entry.login != LOGIN:
            raise FormatError(f"it has an entry for {host} with another login than {LOGIN}")
        kept.append(text[position : entry.start])
        position = entry.end
    return f"machine {host} login {LOGIN} password {password}\n" + "".join((*kept, text[position:]))


@dataclass(slots=True)
class _Entry:
    """Of a machine; ``end`` is behind its last value, and the line's end if nothing else is there."""

    host: str
    start: int
    end: int
    login: str | None = None


def _entries(text: str) -> Iterator[_Entry]:
    entry: _Entry | None = None
    position = 0
    while (key := _WORD.search(text, position)) is not None:
        position = key.end()
        match key[0]:
            case word if word.startswith("#"):
                position = _end(_LINE_END, text, key.start())
            case "machine" | "default" | "macdef" as word:
                if entry is not None:
                    yield entry
                entry = None
                if word == "macdef":
                    position = _end(_MACRO_END, text, position)
                elif word == "machine":
                    value = _value(text, position)
                    position = _end_of_value(text, value)
                    entry = _Entry(_plain(value), key.start(), position)
            case "login" | "user" | "password" | "account" as word:
                value = _value(text, position)
                position = _end_of_value(text, value)
                if entry is not None:
                    entry.end = position
                    entry.login = _plain(value) if word in ("login", "user") else entry.login
            case _:
                raise FormatError(f"line {text.count(chr(10), 0, key.start()) + 1} is malformed")
    if entry is not None:
        yield entry


def _value(text: str, position: int) -> re.Match[str]:
    found = _WORD.search(text, position)
    if found is None:
        raise FormatError("its last entry is cut off")
    return found


def _plain(word: re.Match[str]) -> str:
    return word[0][1:-1] if word[0].startswith('"') else word[0]


def _end_of_value(text: str, value: re.Match[str]) -> int:
    """Find where a value ends, with its line if it is the last of it."""
    line_end = _end(_LINE_END, text, value.end())
    return line_end if not text[value.end() : line_end].strip() else value.end()


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.search(text, position)
    return found.end() if found is not None else len(text)
