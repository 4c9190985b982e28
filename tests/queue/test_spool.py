"""The spool: events that are complete or absent, read within bounds, whoever wrote them."""

import os
from pathlib import Path

import pytest

from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.queue.spool import MAX_EVENT_BYTES, MAX_EVENTS, Spool, parse_event, render_events
from tests.publisher.made_store import made_path

ONE, OTHER = made_path("one"), made_path("other")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool.of(tmp_path / "queue")
    made.make()
    return made


def write(spool: Spool, name: str, content: str, *, time: int = 0) -> None:
    path = Path(str(spool.folder)) / name
    path.write_text(content)
    os.utime(path, (time, time))


def test_what_is_added_is_read_and_removed(spool: Spool) -> None:
    """Paths come back in order, each once; a removed event is gone, and removing it again is no error."""
    spool.add([ONE, OTHER])
    (event,) = spool.read()
    assert event.paths == (ONE, OTHER)
    assert list(spool.read(known={event.name})) == []
    for _ in range(2):
        spool.remove([event.name])
    assert spool.names() == []


def test_a_line_that_is_no_store_path_is_named_and_the_others_count() -> None:
    """What a hook could not write well must not take the rest of its event with it, nor fill the log."""
    wrong = ["no path", f"{ONE}/file", "outputs-of x", "/nix/store/y", "z"]
    lines = [str(ONE), "", f"outputs-of {OTHER}", *wrong]
    event = parse_event("1-2-0", "\n".join(lines).encode() + b"\xff\n")
    assert (event.paths, event.derivations) == ((ONE,), (OTHER,))
    assert len(event.problems) == 4
    assert event.problems[-1] == "event 1-2-0: 2 more lines dropped"


def test_an_event_is_bounded() -> None:
    """A larger one is dropped whole: its last line may be cut anywhere."""
    content = f"{ONE}\n".encode() * (MAX_EVENT_BYTES // len(f"{ONE}\n") + 1)
    event = parse_event("1-2-0", content)
    assert (event.paths, len(event.problems)) == ((), 1)
    assert parse_event("1-2-0", content[: MAX_EVENT_BYTES - 50].rpartition(b"\n")[0]).paths == (ONE,)


def test_many_paths_are_many_events() -> None:
    """No event that this program writes is larger than one that it reads."""
    paths = [StorePath("/nix/store", ONE.hash_part, f"n{number:0>200}") for number in range(2500)]
    events = [parse_event("1-2-0", content) for content in render_events(paths)]
    assert [path for event in events for path in event.paths] == paths
    assert len(events) == 3


def test_reading_is_bounded(spool: Spool) -> None:
    """What a dead queue left is read in parts, the oldest first."""
    for number in range(5):
        write(spool, f"{9 - number}", f"{made_path(f'p{number}')}\n", time=1000 + number)
    assert [event.name for event in spool.read(most_paths=2)] == ["9", "8"]
    for number in range(MAX_EVENTS):
        write(spool, f"0{number}", "", time=2000)
    names = spool.names()
    assert (len(names), names[:2]) == (MAX_EVENTS, ["9", "8"])


def test_what_is_no_event_is_not_read(spool: Spool, tmp_path: Path) -> None:
    """Unfinished files, folders, links and pipes are left alone: nobody renamed them into place."""
    folder = Path(str(spool.folder))
    write(spool, ".nixcache-unfinished-1-2-0", f"{ONE}\n")
    (folder / "folder").mkdir()
    (tmp_path / "secret").write_text(f"{ONE}\n")
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    assert spool.names() == []


def test_a_folder_that_is_gone_has_no_events(tmp_path: Path) -> None:
    """It is no error for whoever looks: the queue makes it anew."""
    spool = Spool.of(tmp_path / "gone")
    assert list(spool.read()) == []
    spool.remove(["1-2-0"])
