import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nar import CHUNK_BYTES, File, Node, Symlink, dump_tree
from nixcache_oci.nix.nar_files import CASE_HACK, dump, restore
from tests.nix.samples import FIXTURES, TREE, trees


def _nar(tree: Node) -> bytes:
    return b"".join(dump_tree(tree))


def _dump(path: Path, *, use_case_hack: bool = False) -> bytes:
    return b"".join(dump(path, use_case_hack=use_case_hack))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    restore(dump_tree(TREE), tmp_path / "tree")
    return tmp_path / "tree"


def test_files_are_dumped_as_nix_dumps_them(tree: Path) -> None:
    """Executables, links, empty directories, names that are not text: byte for byte as real Nix.

    The owner's x bit alone decides what is executable, and is set for it alone. What Nix's case hack appended
    to a name is left out, and the names that are written are what is sorted.
    """
    assert (tree / "executable").stat().st_mode & stat.S_IXUSR
    assert not (tree / "aligned").stat().st_mode & stat.S_IXUSR
    for file in ("executable", "dangling"):
        assert _dump(tree / file) == (FIXTURES / f"{file.replace('dangling', 'symlink')}.nar").read_bytes()
    for modes in ((0o755, 0o644), (0o744, 0o654)):
        for name, mode in zip(("executable", "group-executable"), modes, strict=True):
            (tree / name).chmod(mode)
        assert _dump(tree) == (FIXTURES / "tree.nar").read_bytes()
    assert _dump(tree, use_case_hack=True) == (FIXTURES / "tree-case-hack.nar").read_bytes()


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """A NAR with a name twice could not be read again."""
    (tmp_path / "a").touch()
    (tmp_path / os.fsdecode(b"a" + CASE_HACK + b"1")).touch()
    with pytest.raises(FormatError, match="two files are named 'a'"):
        _dump(tmp_path, use_case_hack=True)


@settings(max_examples=50)
@given(made=trees)
def test_what_is_restored_dumps_the_same(tmp_path_factory: pytest.TempPathFactory, made: Node) -> None:
    """Both directions agree, for any tree."""
    target = tmp_path_factory.mktemp("restored") / "tree"
    nar = _nar(made)
    restore([nar], target)
    assert _dump(target) == nar


def _make_fifo(path: Path) -> None:
    os.mkfifo(path)


def _make_socket(path: Path) -> None:
    # A socket's path may have about 100 bytes only.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@pytest.mark.parametrize(("make", "kind"), [(_make_fifo, "a fifo"), (_make_socket, "a socket")])
def test_special_files_are_refused_by_name(tmp_path: Path, make: object, kind: str) -> None:
    """A NAR cannot hold them, and reading a fifo would wait for ever."""
    assert callable(make)
    make(tmp_path / "special")
    with pytest.raises(FormatError, match=f"{tmp_path}/special is {kind}"):
        _dump(tmp_path)


@pytest.mark.parametrize("new_size", [0, CHUNK_BYTES, 3 * CHUNK_BYTES + 1, 4 * CHUNK_BYTES])
def test_a_file_that_changes_size_is_an_error(tmp_path: Path, new_size: int) -> None:
    """The size stands before the contents: what comes must be as much, or the NAR is broken."""
    path = tmp_path / "growing"
    path.write_bytes(bytes(3 * CHUNK_BYTES))
    chunks = dump(path)
    next(chunks)
    os.truncate(path, new_size)
    with pytest.raises(FormatError, match="growing changed size"):
        list(chunks)


def test_a_dump_that_is_given_up_closes_its_file(tmp_path: Path) -> None:
    """A client that hangs up leaves no open file behind."""
    (tmp_path / "file").write_bytes(bytes(3 * CHUNK_BYTES))
    chunks = dump(tmp_path / "file")
    assert isinstance(chunks, Iterator)
    next(chunks)
    open_files = _open_files()
    del chunks
    assert len(open_files - _open_files()) == 1


def _open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- names are all that is asked


@pytest.mark.parametrize("existing", ["file", "directory", "link", "dangling"])
def test_what_is_there_is_left_alone(tmp_path: Path, existing: str) -> None:
    """Nothing is written into, over or through what is there, and it is not cleaned up either."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "dangling").symlink_to("nothing")
    before = _dump(tmp_path)
    for made in (TREE, File(b"a"), Symlink(b"a")):
        with pytest.raises(FileExistsError):
            restore(dump_tree(made), tmp_path / existing)
    assert _dump(tmp_path) == before
