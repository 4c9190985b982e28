"""Watching: what is queued, and what is remembered."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.database import MOST_ROWS, StoreDatabase
from nixcache_oci.queue.folder import QueueFolder
from nixcache_oci.queue.watching import Watcher
from tests.publisher.made_store import made_path

SCHEMA = "create table ValidPaths (id integer primary key autoincrement, path text, sigs text)"


class Watched:
    """A database, and a queue whose watcher may be started anew."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "db.sqlite"
        self.folder = QueueFolder(folder / "queue")
        self.folder.spool.make()
        self.told: list[str] = []
        self.make_database()

    def make_database(self) -> None:
        self.path.unlink(missing_ok=True)
        with closing(sqlite3.connect(self.path)) as writer:
            writer.execute(SCHEMA)

    def add(self, *names: str, sigs: str | None = None) -> None:
        with closing(sqlite3.connect(self.path)) as writer, writer:
            for name in names:
                writer.execute(
                    "insert into ValidPaths (path, sigs) values (?, ?)", (str(made_path(name)), sigs)
                )

    def watcher(self) -> Watcher:
        spool, mark = self.folder.spool, self.folder.mark
        return Watcher(spool, mark, StoreDatabase(self.path), {"upstream-1"}, self.told.append)

    def write_mark(self, text: str) -> None:
        Path(str(self.folder.mark)).write_text(text)

    def remove_spool(self) -> None:
        Path(str(self.folder.spool.folder)).rmdir()

    def queued(self) -> list[str]:
        """Take the names out of the spool."""
        events = list(self.folder.spool.read())
        self.folder.spool.remove([event.name for event in events])
        return [path.name for event in events for path in event.paths]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_the_first_watch_begins_at_the_present(watched: Watched) -> None:
    """A machine's whole store is not published because somebody watches it; later ones go on from there."""
    watched.add("before")
    await watched.watcher().look()
    watched.add("meanwhile")
    watcher = watched.watcher()
    for names in (["meanwhile"], []):
        await watcher.look()
        assert watched.queued() == names
    watched.add("later")
    await watcher.look()
    assert (watched.queued(), watched.told) == (["later"], [])


async def test_derivations_and_what_an_upstream_signed_are_left_out(watched: Watched) -> None:
    """No client substitutes the one, and each gets the other elsewhere."""
    watcher = watched.watcher()
    await watcher.look()
    watched.add("a.drv", "b", "c.drv.txt")
    watched.add("d", sigs="upstream-1:AA other-1:BB")
    watched.add("e", sigs="other-1:BB")
    await watcher.look()
    assert watched.queued() == ["b", "c.drv.txt", "e"]


@pytest.mark.parametrize("damage", ["another store", "a mark that is no number"])
async def test_watching_begins_anew_where_the_mark_means_nothing(watched: Watched, damage: str) -> None:
    """It says so, and misses nothing that comes after."""
    await watched.watcher().look()
    watched.add("one", "two")
    await watched.watcher().look()
    watched.queued()
    if damage == "another store":
        watched.make_database()
        watched.add("of-the-other-store")
    else:
        watched.write_mark("x")
    watcher = watched.watcher()
    await watcher.look()
    assert (watched.queued(), len(watched.told)) == ([], 1)
    watched.add("after")
    await watcher.look()
    assert watched.queued() == ["after"]


async def test_a_look_takes_no_more_rows_than_its_bound(watched: Watched) -> None:
    """What came in a year without a look is found in parts, each of which is on disk before the next."""
    watcher = watched.watcher()
    await watcher.look()
    watched.add(*(f"n{number}" for number in range(MOST_ROWS + 1)))
    await watcher.look()
    assert set(watched.queued()) == {f"n{number}" for number in range(MOST_ROWS + 1)}


async def test_what_cannot_be_queued_is_queued_later(watched: Watched) -> None:
    """The mark moves only after the event is on disk."""
    watcher = watched.watcher()
    await watcher.look()
    watched.add("one")
    watched.remove_spool()
    with pytest.raises(OSError, match="events"):
        await watcher.look()
    watched.folder.spool.make()
    await watcher.look()
    assert watched.queued() == ["one"]
