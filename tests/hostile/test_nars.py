"""Tricks with names and links in NARs: whoever unpacks one writes below its target, or nothing at all."""

import os
from pathlib import Path

import pytest

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nar import CLOSE, CONTENTS, ENTRY_NAME, MAGIC, NODE, OPEN, TARGET, token, words
from nixcache_oci.nix.nar_files import restore
from tests.hostile.story import Tally


def file(contents: bytes = b"x") -> bytes:
    return OPEN + words("regular") + CONTENTS + token(contents) + CLOSE


def link(target: bytes) -> bytes:
    return OPEN + words("symlink") + TARGET + token(target) + CLOSE


def entry(name: bytes, node: bytes) -> bytes:
    return words("entry") + ENTRY_NAME + token(name) + NODE + node + CLOSE


def directory(*entries: bytes) -> bytes:
    return OPEN + words("directory") + b"".join(entries) + CLOSE


OUTSIDE = b"../outside"
REFUSED: dict[str, bytes] = {
    "..": directory(entry(b"..", file())),
    ".": directory(entry(b".", file())),
    "no name": directory(entry(b"", file())),
    "a slash": directory(entry(b"a/b", file())),
    "an absolute name": directory(entry(b"/etc/x", file())),
    "out and back": directory(entry(b"../outside/x", file())),
    "a NUL": directory(entry(b"a\0b", file())),
    "a link, then through it": directory(entry(b"a", link(OUTSIDE)), entry(b"a/x", file())),
    "a link, then a directory of its name": directory(
        entry(b"a", link(OUTSIDE)), entry(b"a", directory(entry(b"x", file())))
    ),
    "a link, then a file of its name": directory(entry(b"a", link(OUTSIDE + b"/new")), entry(b"a", file())),
    "a directory twice": directory(entry(b"a", directory()), entry(b"a", directory(entry(b"x", file())))),
    "lost order": directory(entry(b"b", file()), entry(b"a", file())),
    "a link to nothing": directory(entry(b"a", link(b""))),
    "a link with a NUL": directory(entry(b"a", link(b"a\0b"))),
    "a name of 5000 bytes": directory(entry(b"a" * 5000, file())),
    "a target of 5000 bytes": directory(entry(b"a", link(b"a" * 5000))),
    "a token of 2^64-1 bytes": directory(words("entry") + ENTRY_NAME + b"\xff" * 8),
    "a file of 2^63 bytes": OPEN + words("regular") + CONTENTS + (2**63).to_bytes(8, "little") + b"x" * 100,
    "another type": OPEN + words("fifo") + CLOSE,
    "a device": OPEN + words("chardev") + CLOSE,
    "two types": OPEN + words("regular", "type", "symlink") + TARGET + token(OUTSIDE) + CLOSE,
    "dirt in the padding": directory(entry(b"a", file()))[:-1] + b"x",
    "something behind the end": directory() + file(),
    "cut": directory(entry(b"a", file()))[:-20],
}
NO_FILE_SYSTEM_TAKES: dict[str, bytes] = {
    "directories without end": (OPEN + words("directory", "entry") + ENTRY_NAME + token(b"aa") + NODE)
    * 20_000,
    "a name of 300 bytes": directory(entry(b"a" * 300, file())),
    "a path of 6000 bytes": b"".join(
        (OPEN + words("directory", "entry") + ENTRY_NAME + token(b"a" * 200) + NODE) for _ in range(30)
    )
    + file()
    + CLOSE * 60,
}


@pytest.mark.parametrize("trick", REFUSED | NO_FILE_SYSTEM_TAKES)
def test_tricks_leave_nothing(tmp_path: Path, trick: str, data: Tally) -> None:
    """Neither beside the target, nor through a link, nor the target itself."""
    outside = tmp_path / "outside"
    outside.mkdir()
    nar = MAGIC + (REFUSED | NO_FILE_SYSTEM_TAKES)[trick]
    with pytest.raises(FormatError if trick in REFUSED else OSError):
        restore([nar[start : start + 1000] for start in range(0, len(nar), 1000)], tmp_path / "target")
    assert sorted(tmp_path.iterdir()) == [outside]
    assert list(outside.iterdir()) == []
    data.add("names and links in NARs", "refused; nothing is left", len(REFUSED | NO_FILE_SYSTEM_TAKES))


ODD = [
    *(b"-rf", b"~", b"*", b"a\nb", b"\x1b[2J", b"\xff", b"con"),
    b"a" * 255,
    b"...",
    b" ",
    b"\\..\\x",
    b"%2e%2e",
]


def test_odd_names_are_names(tmp_path: Path) -> None:
    """Any bytes but the slash and NUL are, and links may point anywhere as long as nobody follows them."""
    entries = [entry(name, link(OUTSIDE if number % 2 else b"/")) for number, name in enumerate(sorted(ODD))]
    restore([MAGIC + directory(*entries)], tmp_path / "target")
    assert sorted(os.fsencode(path.name) for path in (tmp_path / "target").iterdir()) == sorted(ODD)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
