"""The last good index on disk."""

import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache import index_folder
from nixcache_oci.cache.index_folder import NOWHERE, IndexFolder
from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.clients.durable_file import unfinished_name
from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.odd_files import NO_FILES, NO_FOLDERS, put_in_place, state_below
from tests.support.publish import CREATED

NAME = "ghcr.io/owner/name/nix-cache"


def put_table(folder: IndexFolder, seed: str) -> Digest:
    text = render_table(Table(TableHeader(CREATED), (), (store_object(seed).narinfo,)))
    writer = folder.table_writer(Digest.of(text))
    try:
        writer.write_text(text)
        writer.finish(Digest.of(text))
    finally:
        writer.close()
    return Digest.of(text)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """Listing and tables, by another process."""
    folder = IndexFolder(tmp_path, NAME)
    table = put_table(folder, "one")
    listing = Listing(index=Digest.of(b"index"), version1=table)
    folder.save(listing)
    loaded = IndexFolder(tmp_path, NAME).load()
    assert loaded is not None
    assert loaded[0] == listing
    assert list(loaded[1]) == [table]


def test_caches_do_not_mix(tmp_path: Path) -> None:
    """One machine may serve several: each has a folder of its own, whatever its name."""
    folder = IndexFolder(tmp_path, NAME)
    folder.save(Listing())
    assert IndexFolder(tmp_path, NAME + "2").load() is None
    assert IndexFolder(tmp_path, "oci:/../../" + "x" * 300).path.parent == tmp_path


def test_tables_that_are_listed_no_more_are_removed(tmp_path: Path) -> None:
    """The folder must not grow for ever; what another process is writing stays."""
    folder = IndexFolder(tmp_path, NAME)
    old, new = put_table(folder, "old"), put_table(folder, "new")
    being_written = folder.table_writer(Digest.of(b"later"))
    being_written.write_text(b"Nixcache-Table: 2\n")
    folder.save(Listing(version1=new))
    assert folder.open_table(old) is None
    assert folder.open_table(new) is not None
    assert any(path.name.startswith(".") for path in (folder.path / "tables").iterdir())
    being_written.close()


def test_what_a_crash_left_is_removed(tmp_path: Path) -> None:
    """Keys whose table was never put there, and files that nobody writes any more."""
    folder = IndexFolder(tmp_path, NAME)
    kept = put_table(folder, "kept")
    tables = folder.path / "tables"
    (tables / f"{Digest.of(b'crashed').hex}.keys").write_bytes(b"keys")
    left_behind = []
    for place in (tables, folder.path):
        path = place / unfinished_name()
        path.write_bytes(b"content")
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
        left_behind.append(path)
    folder.save(Listing(version1=kept))
    assert {path.name for path in tables.iterdir()} == {f"{kept.hex}.table", f"{kept.hex}.keys"}
    assert not any(path.exists() for path in left_behind)


@pytest.fixture
def listings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inode of each folder that is listed."""
    listed: list[int] = []
    for name in ("listdir", "scandir"):
        list_folder = getattr(os, name)

        def note(descriptor: int, list_folder: Callable[[int], object] = list_folder) -> object:
            listed.append(os.fstat(descriptor).st_ino)
            return list_folder(descriptor)

        monkeypatch.setattr(os, name, note)
    return listed


def test_a_look_lists_the_tables_once(tmp_path: Path, listings: list[int]) -> None:
    """There may be thousands. What failed looks left is looked for after a start and a failed one."""
    folder = IndexFolder(tmp_path, NAME)
    tables = (folder.path / "tables").stat().st_ino
    kept = put_table(folder, "kept")
    folder.save(Listing(version1=kept))
    listings.clear()
    folder.drop_unused_tables([kept])
    new = put_table(folder, "new")
    folder.save(Listing(version1=new))
    assert listings.count(tables) == 1
    listings.clear()
    put_table(folder, "failed")
    folder.drop_unused_tables([new])
    assert listings == [tables]
    folder.drop_unused_tables([new])
    again = IndexFolder(tmp_path, NAME)
    listings.clear()
    again.drop_unused_tables([new])
    assert listings == [tables]


def test_a_damaged_table_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is fetched again, and said once."""
    folder = IndexFolder(tmp_path, NAME)
    table = put_table(folder, "one")
    os.truncate(folder.path / "tables" / f"{table.hex}.table", 10)
    assert folder.open_table(table) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert list((folder.path / "tables").iterdir()) == []
    assert folder.open_table(put_table(folder, "one")) is not None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b"[" * 9999, b'{"index": 5, "segments": [], "version1": null}'],
    ids=["empty", "cut", "no-utf-8", "list", "deep", "type"],
)
def test_a_damaged_listing_is_none(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The proxy then starts as if it were the first time, and says so."""
    folder = IndexFolder(tmp_path, NAME)
    folder.save(Listing())
    (folder.path / "index.json").write_bytes(content)
    assert folder.load() is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_table_that_is_gone_does_not_take_the_rest_along(tmp_path: Path) -> None:
    """What is there is served; the refresh fetches what is missing."""
    folder = IndexFolder(tmp_path, NAME)
    folder.save(Listing(version1=Digest.of(b"gone")))
    loaded = folder.load()
    assert loaded is not None
    assert loaded[1] == {}


def test_the_first_key_stays(tmp_path: Path) -> None:
    """A registry that replaces the key later must not get away with it."""
    folder = IndexFolder(tmp_path, NAME)
    assert folder.pin_key([]) is None
    assert folder.pin_key(["first:AA", "second:AA"]) == "first:AA"
    assert IndexFolder(tmp_path, NAME).pin_key(["second:AA"]) == "first:AA"


def test_of_two_processes_one_pins(tmp_path: Path) -> None:
    """Both start with an empty folder and see different keys: they agree on one of them."""
    folders = [IndexFolder(tmp_path, NAME) for _ in range(4)]
    for folder in folders * 10:
        (folder.path / "public-key").unlink(missing_ok=True)
        start = threading.Barrier(len(folders))
        pinned: list[str | None] = []

        def pin(number: int, start: threading.Barrier = start, pinned: list[str | None] = pinned) -> None:
            start.wait()
            pinned.append(folders[number].pin_key([f"key-{number}:AA"]))

        threads = [threading.Thread(target=pin, args=(number,)) for number in range(len(folders))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pinned == [folders[0].pin_key([])] * len(folders)
        assert {path.name for path in folder.path.iterdir()} == {"public-key", "repository", "tables"}


def _put_in_the_way(folder: IndexFolder, obstacle: str) -> None:
    """Make some part of a folder that holds a good index one that cannot be written."""
    path = folder.path
    match obstacle:
        case "a file for the root":
            shutil.rmtree(path.parent)
            path.parent.write_text("")
        case "a file for the folder":
            shutil.rmtree(path)
            path.write_text("")
        case "a file for the tables":
            shutil.rmtree(path / "tables")
            (path / "tables").write_text("")
        case "a folder for the listing":
            (path / "index.json").unlink()
            (path / "index.json" / "x").mkdir(parents=True)
        case "a folder for the name":
            (path / "repository").unlink()
            (path / "repository" / "x").mkdir(parents=True)
        case "folders for tables":
            for table in (path / "tables").iterdir():
                table.unlink()
                (table / "x").mkdir(parents=True)
        case "a dangling link for the root":
            shutil.rmtree(path.parent)
            path.parent.symlink_to("/nowhere/at/all")


OBSTACLES = [
    "a file for the root",
    "a file for the folder",
    "a file for the tables",
    "a folder for the listing",
    "a folder for the name",
    "folders for tables",
    "a dangling link for the root",
]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_nothing_that_is_in_the_way_stops_a_reader(
    tmp_path: Path, obstacle: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder is a convenience: tables are kept elsewhere, and a warning names the setting."""
    root = tmp_path / "root"
    former = IndexFolder(root, NAME)
    table = put_table(former, "one")
    former.save(Listing(version1=table))
    _put_in_the_way(former, obstacle)
    caplog.clear()
    folder = IndexFolder(root, NAME)
    folder.load()
    for _ in range(2):
        put_table(folder, "one")
        put_table(folder, "two")
        assert folder.open_table(table) is not None
        folder.save(Listing(version1=table))
    assert folder.pin_key(["first:AA"]) == "first:AA"
    assert folder.pin_key(["second:AA"]) == "first:AA"
    warnings = [one.getMessage() for one in caplog.records if "NIXCACHE_INDEX_DIR" in one.getMessage()]
    assert len(warnings) == 1


def test_what_failed_looks_fetched_is_forgotten_elsewhere_too(tmp_path: Path) -> None:
    """Memory and the folder for temporary files must not fill up while the disk takes nothing."""
    (tmp_path / "root").write_text("")
    folder = IndexFolder(tmp_path / "root", NAME)
    old, new = put_table(folder, "old"), put_table(folder, "new")
    folder.drop_unused_tables([new])
    assert folder.open_table(old) is None
    assert folder.open_table(new) is not None


def test_who_has_no_home_folder_has_an_index_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    """Services and containers run under users without one."""
    folder = IndexFolder(NOWHERE, NAME)
    table = put_table(folder, "one")
    assert folder.open_table(table) is not None
    assert not folder.save(Listing(version1=table))
    assert [one.getMessage() for one in caplog.records] == [
        "the index is not kept on disk: there is no home folder; set NIXCACHE_INDEX_DIR to a writable folder"
    ]


def test_what_the_disk_did_not_take_is_written_when_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next start then finds all of it, and the log says that it is so again."""
    root = tmp_path / "root"
    root.write_text("")
    folder = IndexFolder(root, NAME)
    table = put_table(folder, "one")
    listing = Listing(version1=table)
    assert not folder.save(listing)
    root.unlink()
    with caplog.at_level(logging.INFO):
        assert folder.save(listing)
    assert "kept on disk again" in caplog.text
    loaded = IndexFolder(root, NAME).load()
    assert loaded is not None
    assert loaded[0] == listing
    assert list(loaded[1]) == [table]


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("place", ["index.json", "public-key", "repository", "table", "keys"])
def test_what_is_no_file_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, kind: str
) -> None:
    """It is named, nothing waits for it, and what it leads to is neither read nor written.

    All but a folder is replaced when its content is written anew, as anything damaged is.
    """
    folder, elsewhere = IndexFolder(tmp_path / "index", NAME), tmp_path / "elsewhere"
    elsewhere.mkdir()
    table = put_table(folder, "one")
    folder.save(Listing(version1=table))
    folder.pin_key(["first"])
    name = f"tables/{table.hex}.{place}" if place in ("table", "keys") else place
    path = folder.path / name
    named = put_in_place(kind, path, elsewhere)
    before = state_below(elsewhere)

    problems: list[str] = []

    def attempt(job: Callable[[], object]) -> object:
        try:
            return job()
        except OSError as error:
            problems.append(str(error))
            return None

    loaded = attempt(folder.load)
    if place == "index.json":
        assert loaded is None
    elif place in ("table", "keys"):
        assert loaded == (Listing(version1=table), {})
    if place == "public-key":
        assert attempt(lambda: folder.pin_key(["first"])) is None
        path.rmdir() if kind == "folder" else path.unlink()
        folder.pin_key(["first"])
    else:
        attempt(lambda: IndexFolder(tmp_path / "index", NAME))
        attempt(lambda: put_table(folder, "one"))
        attempt(lambda: folder.save(Listing(version1=table)))
    problems += [record.getMessage() for record in caplog.records]
    problems += [
        record.__dict__["fields"].get("error", "") for record in caplog.records if "fields" in record.__dict__
    ]
    if place != "repository" or kind == "folder":  # that one is only written
        assert any(named in problem for problem in problems)
    assert state_below(elsewhere) == before
    assert stat.S_ISREG(path.lstat().st_mode) or (kind == "folder" and place != "public-key")


@pytest.mark.parametrize("kind", NO_FOLDERS)
@pytest.mark.parametrize("place", ["", "tables"])
def test_what_is_no_folder_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, kind: str
) -> None:
    """One line names it and says what to do; the start goes on, and nothing is written where a link leads."""
    former, elsewhere = IndexFolder(tmp_path / "index", NAME), tmp_path / "elsewhere"
    elsewhere.mkdir()
    saved = put_table(former, "one")
    former.save(Listing(version1=saved))
    named = put_in_place(kind, former.path / place, elsewhere)
    before = state_below(elsewhere)
    folder = IndexFolder(tmp_path / "index", NAME)
    assert folder.load() is None
    assert folder.open_table(saved) is None
    folder.drop_unused_tables([])
    table = put_table(folder, "two")
    assert folder.open_table(table) is not None
    assert not folder.save(Listing(version1=table))
    assert folder.pin_key(["first:AA"]) == folder.pin_key(["second:AA"]) == "first:AA"
    assert [record.getMessage() for record in caplog.records] == [folder.problem]
    assert named in str(folder.problem)
    assert "NIXCACHE_INDEX_DIR" in str(folder.problem)
    assert state_below(elsewhere) == before


def test_saved_files_have_limits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A terabyte of nothing is not read into memory."""
    folder = IndexFolder(tmp_path, NAME)
    folder.save(Listing())
    folder.pin_key(["first"])
    for name in ("index.json", "public-key"):
        os.truncate(folder.path / name, 2**40)
    assert folder.load() is None
    assert "over 16777216 bytes" in caplog.records[-1].__dict__["fields"]["error"]
    with pytest.raises(FormatError, match="over 4096 bytes"):
        folder.pin_key(["first"])


@pytest.mark.parametrize(
    ("mode", "is_warned"), [(0o700, False), (0o755, False), (0o775, True), (0o707, True)]
)
def test_a_folder_that_others_may_write_to_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, is_warned: bool
) -> None:
    """They could tell this proxy what the cache lists; ours are made for us alone."""
    folder = IndexFolder(tmp_path, NAME)
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    folder.path.chmod(mode)
    IndexFolder(tmp_path, NAME)
    assert [record.message for record in caplog.records] == (
        ["others may write to the index folder"] if is_warned else []
    )


def test_what_is_loaded_has_the_limits_of_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier version may have saved more, and memory is as scarce then."""
    folder = IndexFolder(tmp_path, NAME)
    tables = [put_table(folder, str(number)) for number in range(4)]
    descriptor = Descriptor(media_type.IMAGE_MANIFEST, Digest.of(b"manifest"), 1)
    segments = [
        Segment.from_descriptor(replace(descriptor, annotations=annotations_of(table, hour)))
        for hour, table in enumerate(tables)
    ]
    folder.save(Listing(segments=tuple(segments)))
    monkeypatch.setattr(index_folder, "TableBudget", lambda: TableBudget(most_entries=2))
    loaded = folder.load()
    assert loaded is not None
    assert loaded[1].keys() == set(tables[2:])


def annotations_of(table: Digest, hour: int) -> dict[str, str]:
    return {
        media_type.ANNOTATION_TABLE: str(table),
        media_type.ANNOTATION_CREATED: format_time(CREATED + timedelta(hours=hour)),
        media_type.ANNOTATION_PATHS: "1",
    }


def test_many_damaged_tables_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They have one cause, such as a disk that was full."""
    folder = IndexFolder(tmp_path, NAME)
    for number in range(5):
        table = put_table(folder, str(number))
        os.truncate(folder.path / "tables" / f"{table.hex}.table", 10)
        assert folder.open_table(table) is None
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
