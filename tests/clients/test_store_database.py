"""Nix's database, read beside whoever writes it, and without the right to write."""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store import database
from nixcache_oci.clients.local_store.database import StoreDatabase, find_database
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import StoreError
from tests.clients.nix_story import NixStory

NOBODY = 65534
SCHEMA = """
    create table ValidPaths (
      id integer primary key autoincrement not null, path text unique not null, sigs text
    );
"""


@pytest.fixture
def path() -> Iterator[Path]:
    """A database in a folder that everybody may read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    with closing(write(folder / "db.sqlite")) as writer:
        writer.executescript(SCHEMA)
    yield folder / "db.sqlite"
    shutil.rmtree(folder)


def write(path: Path) -> sqlite3.Connection:
    """Open it as Nix does."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode = wal")
    return connection


def add(writer: sqlite3.Connection, name: str, sigs: str | None = None) -> None:
    writer.execute("insert into ValidPaths (path, sigs) values (?, ?)", (name, sigs))


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give root's rights up for a while."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_is_in_the_log_is_seen_and_what_was_moved_out_of_it(path: Path) -> None:
    """Whether Nix runs at the moment or not, without a right to write, and leaving no file behind."""
    with closing(StoreDatabase(path)) as reader:
        with closing(write(path)) as writer:
            add(writer, "one")
            add(writer, "two", "a-1:xx b-1:yy")
            with as_nobody():
                found = reader.find_new(0)
                assert [(one.id, one.path, one.key_names) for one in found] == [
                    (1, "one", ()),
                    (2, "two", ("a-1", "b-1")),
                ]
            add(writer, "three")
            with as_nobody():
                assert [one.path for one in reader.find_new(2)] == ["three"]
        with closing(write(path)) as writer:
            add(writer, "four")
        with as_nobody():
            assert (reader.last_id(), reader.find_new(3)[0].path) == (4, "four")
    with closing(write(path)):
        pass  # the last to close it moves the log into the file
    assert [file.name for file in path.parent.iterdir()] == ["db.sqlite"]
    with closing(StoreDatabase(path)) as reader, as_nobody():
        assert (reader.last_id(), len(reader.find_new(0))) == (4, 4)
    assert [file.name for file in path.parent.iterdir()] == ["db.sqlite"]


def test_an_id_is_never_used_again(path: Path) -> None:
    """A path that was deleted, and built again, is new."""
    with closing(write(path)) as writer, closing(StoreDatabase(path)) as reader:
        add(writer, "one")
        last = reader.last_id()
        writer.execute("delete from ValidPaths")
        assert (reader.last_id(), reader.find_new(0)) == (last, [])
        add(writer, "one")
        assert [one.path for one in reader.find_new(last)] == ["one"]


def test_a_database_that_was_replaced_is_opened_anew(path: Path) -> None:
    """A connection to the old one would show its contents for ever."""
    with closing(write(path)) as writer, closing(StoreDatabase(path)) as reader:
        add(writer, "old")
        assert reader.last_id() == 1
        other = path.with_name("other")
        with closing(write(other)) as second:
            second.executescript(SCHEMA)
            add(second, "new")
            add(second, "newer")
        writer.close()
        for name in ("db.sqlite-wal", "db.sqlite-shm"):
            path.with_name(name).unlink(missing_ok=True)
        other.replace(path)
        assert [one.path for one in reader.find_new(0)] == ["new", "newer"]


def test_a_database_that_stays_locked_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded time, with the reason; it is read once the lock is gone."""
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.01)
    with closing(StoreDatabase(path)) as reader:
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("pragma locking_mode = exclusive")
            writer.execute("pragma journal_mode = wal")
            add(writer, "one")
            with pytest.raises(StoreError, match=r"db\.sqlite: database is locked"):
                reader.find_new(0)
        assert [one.path for one in reader.find_new(0)] == ["one"]


def test_what_is_no_database_is_named(path: Path) -> None:
    """Whoever watches must know which file is meant."""
    for content in (b"no database" * 1000, None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StoreError, match=r"db\.sqlite: "):
            StoreDatabase(path).last_id()


@pytest.mark.needs("nix", "nix-build")
async def test_the_database_of_a_real_store(story: NixStory) -> None:
    """It is found, and says the same as Nix."""
    paths = story.sandbox.build_paths(3)
    store = await LocalStore.open(story.nix())
    with closing(StoreDatabase(find_database(store))) as reader:
        found = {one.path for one in reader.find_new(0)}
    assert found >= set(paths)
