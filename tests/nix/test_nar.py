import hashlib
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import (
    CHUNK_BYTES,
    Directory,
    EndDirectory,
    EntryName,
    File,
    Node,
    StartDirectory,
    StartFile,
    Symlink,
    dump_tree,
    encode,
    token,
    words,
)
from nixcache_oci.nix.nar_reader import MAX_DEPTH, MAX_NAME_BYTES, parse
from nixcache_oci.nix.narinfo import NarInfo
from tests.nix.samples import FIXTURES, TREE, narinfo_text, trees

_CONTENTS = words("(", "type", "regular", "contents")
_FILE = _CONTENTS + token(b"abc") + words(")")


def _nar(tree: Node) -> bytes:
    return b"".join(dump_tree(tree))


def _pieces(nar: bytes, size: int) -> Iterator[bytes]:
    return (nar[start : start + size] for start in range(0, len(nar), size))


def _directory(*entries: bytes) -> bytes:
    return words("nix-archive-1", "(", "type", "directory") + b"".join(entries) + words(")")


def _entry(name: bytes, node: bytes = _FILE) -> bytes:
    return words("entry", "(", "name") + token(name) + words("node") + node + words(")")


@pytest.mark.parametrize(
    ("fixture", "tree"),
    [
        ("tree.nar", TREE),
        ("executable.nar", File(b"#!/bin/sh\n", executable=True)),
        ("symlink.nar", Symlink(b"../nowhere")),
    ],
)
def test_trees_are_written_as_nix_writes_them(fixture: str, tree: Node) -> None:
    """A NAR that differs in one byte has another NarHash, and no signature fits it."""
    assert _nar(tree) == (FIXTURES / fixture).read_bytes()


@given(trees, st.integers(1, 64))
def test_what_is_written_is_read(tree: Node, size: int) -> None:
    """A NAR has one form: what is read and written again is the same, however it was cut."""
    nar = _nar(tree)
    assert b"".join(encode(parse(_pieces(nar, size)))) == nar
    assert len(nar) % 8 == 0


@settings(max_examples=30)
@given(trees, st.data())
def test_a_cut_or_longer_nar_is_refused(tree: Node, data: st.DataObject) -> None:
    """A stream that ends early is never taken for a whole one, and nothing may follow it."""
    nar = _nar(tree)
    cut = data.draw(st.integers(0, len(nar) - 1))
    with pytest.raises(FormatError, match="NAR: cut short"):
        list(parse([nar[:cut]]))
    with pytest.raises(FormatError, match="NAR: something follows"):
        list(parse([nar, b"", b"\0"]))


@settings(max_examples=50)
@given(trees, st.data())
def test_no_changed_byte_is_passed_over(tree: Node, data: st.DataObject) -> None:
    """Each byte means something: a changed NAR is another tree or none, never the same one."""
    nar = _nar(tree)
    position = data.draw(st.integers(0, len(nar) - 1))
    changed = nar[:position] + bytes([nar[position] ^ data.draw(st.integers(1, 255))]) + nar[position + 1 :]
    try:
        again = b"".join(encode(parse([changed])))
    except FormatError:
        return
    assert again == changed


def test_events_tell_what_the_nar_holds() -> None:
    """Contents come right behind their file, each name before its object."""
    tree = Directory({b"b": Directory({}), b"a": File(b"abc", executable=True), b"c": Symlink(b"a")})
    assert list(parse(dump_tree(tree))) == [
        StartDirectory(),
        EntryName(b"a"),
        StartFile(3, executable=True),
        b"abc",
        EntryName(b"b"),
        StartDirectory(),
        EndDirectory(),
        EntryName(b"c"),
        Symlink(b"a"),
        EndDirectory(),
    ]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 5])
def test_pieces_are_neither_large_nor_many(size: int) -> None:
    """Memory is one piece, and small tokens do not become small writes."""
    pieces = list(dump_tree(Directory({b"a": File(bytes(size)), b"b": File(b"")})))
    assert max(map(len, pieces)) <= CHUNK_BYTES
    assert len(pieces) <= size // CHUNK_BYTES + 3
    assert all(pieces)
    assert sum(map(len, pieces)) == len(b"".join(encode(parse(pieces))))


def test_a_deep_tree_needs_no_stack() -> None:
    """A path may be deeper than Python recurses, but not deeper than one can be opened."""
    tree: Node = Directory({})
    for _ in range(MAX_DEPTH - 1):
        tree = Directory({b"d": tree})
    nar = _nar(tree)
    assert b"".join(encode(parse([nar]))) == nar
    with pytest.raises(FormatError, match="nested directories"):
        list(parse(dump_tree(Directory({b"d": tree}))))


@pytest.mark.parametrize(
    ("nar", "rule"),
    [
        *((b"", "cut short"), (words("nix-archive-2") + _FILE, "form that Nix writes")),
        (words("nix-archive-1", "(", "type", "fifo", ")"), "unknown type"),
        (words("nix-archive-1", "(", "type", "regular", ")"), "contents of a file"),
        (
            words("nix-archive-1", "(", "type", "regular", "executable", "x", "contents", "", ")"),
            "form that Nix",
        ),
        (words("nix-archive-1", "(", "type", "symlink", "target", "", ")"), "point at"),
        (words("nix-archive-1", "(", "type", "symlink", "target", "a\0b", ")"), "point at"),
        (
            words("nix-archive-1") + _CONTENTS + token(b"abc")[:-1] + b"\1" + words(")"),
            "form that Nix writes",
        ),
        (words("nix-archive-1") + (2**63).to_bytes(8, "little") + _FILE, "form that Nix writes"),
        (words("nix-archive-1", "(", "type") + (2**63).to_bytes(8, "little"), "a token of"),
        (words("nix-archive-1") + _CONTENTS + b"\xff" * 8, "cut short"),
        *((_directory(_entry(b"")), "sort after|named"), (_directory(_entry(b".")), "named")),
        *((_directory(_entry(b"..")), "named"), (_directory(_entry(b"a/b")), "named")),
        *((_directory(_entry(b"/")), "named"), (_directory(_entry(b"a\0")), "named")),
        (_directory(_entry(b"a" * (MAX_NAME_BYTES + 1))), "a token of"),
        (_directory(_entry(b"a"), _entry(b"a")), "sort after"),
        (_directory(_entry(b"b"), _entry(b"a")), "sort after"),
        (_directory(_entry(b"a"), _entry(b"B")), "sort after"),
        (_directory(words("file")), "expected an entry"),
        (_directory(words("entry", "(", "node")), "form that Nix writes"),
    ],
)
def test_anything_else_is_refused(nar: bytes, rule: str) -> None:
    """Names that lead out of a directory, two of one name, lost order, dirt in the padding, huge tokens."""
    with pytest.raises(FormatError, match=f"NAR: .*({rule})"):
        list(parse([nar]))


def test_a_huge_file_is_not_gathered() -> None:
    """Contents are passed on as they come, so their stated size costs nothing."""
    start = words("nix-archive-1") + _CONTENTS + (2**62).to_bytes(8, "little")
    events = parse(iter([start, *[bytes(1000)] * 3]))
    assert next(events) == StartFile(2**62, executable=False)
    assert [next(events) for _ in range(3)] == [bytes(1000)] * 3


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b"])
def test_no_tree_has_a_name_that_no_file_has(name: bytes) -> None:
    """What we write, we can read."""
    with pytest.raises(FormatError, match="can be named"):
        _nar(Directory({name: File(b"")}))


def test_the_hash_of_a_nar_is_the_narhash() -> None:
    """NarHash and NarSize that Nix recorded for the fixture with these contents are those of our NAR."""
    narinfo = NarInfo.parse(narinfo_text("recursive-sha256"))
    nar = _nar(File(b"plain\n"))
    assert NixHash(hashlib.sha256(nar).digest()) == narinfo.nar_hash
    assert len(nar) == narinfo.nar_size
