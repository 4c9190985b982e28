"""The spool of the queue: a folder with one small file an event, which any program can write.

An event has a store path on each line; ``outputs-of`` and a derivation's path mean its outputs. Its file is
written under a hidden name and then renamed, so that it is complete or absent; of one name, the last counts.
Nothing in the folder is trusted, and what is read at once is bounded.
"""

import heapq
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Final

from nixcache_oci.clients.durable_file import remove_unfinished, write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.wording import counted

OUTPUTS_OF: Final = "outputs-of "
"""Begins a line that names a derivation and means its outputs."""

MAX_EVENT_BYTES: Final = 1024 * 1024  # Linux passes a hook at most 128 KiB in one variable
MAX_EVENTS: Final = 10_000
"""Events read at once; those beyond it wait in the folder."""

_PATHS_AN_EVENT: Final = 1000
_MAX_PROBLEMS: Final = 3  # told of one event


@dataclass(frozen=True, slots=True)
class Event:
    """What one event names.

    Attributes:
        name: of its file.
        paths: store paths to publish.
        derivations: whose outputs are to be published.
        problems: what of it cannot be used, and why, as lines.
    """

    name: str
    paths: tuple[StorePath, ...] = ()
    derivations: tuple[StorePath, ...] = ()
    problems: tuple[str, ...] = ()


def parse_event(name: str, content: bytes, store_dir: str | None = None) -> Event:
    """Read an event, of this store if one is given; lines that cannot be used are its problems. No I/O."""
    if len(content) > MAX_EVENT_BYTES:
        return Event(name, problems=(f"event {name}: dropped: it has more than {MAX_EVENT_BYTES} bytes",))
    paths: dict[StorePath, None] = {}
    derivations: dict[StorePath, None] = {}
    problems: list[str] = []
    for line in content.decode(errors="replace").split("\n"):
        if not line.strip():
            continue
        found = derivations if line.startswith(OUTPUTS_OF) else paths
        try:
            found[StorePath.parse(line.removeprefix(OUTPUTS_OF), store_dir)] = None
        except FormatError as error:
            problems.append(f"event {name}: line dropped: {error}")
    if len(problems) > _MAX_PROBLEMS:
        more = counted(len(problems) - _MAX_PROBLEMS, "more line")
        problems[_MAX_PROBLEMS:] = [f"event {name}: {more} dropped"]
    return Event(name, tuple(paths), tuple(derivations), tuple(problems))


def render_events(paths: Sequence[StorePath]) -> Iterator[bytes]:
    """Write events that name these paths, as many as it takes."""
    for start in range(0, len(paths), _PATHS_AN_EVENT):
        yield "".join(f"{path}\n" for path in paths[start : start + _PATHS_AN_EVENT]).encode()


@dataclass(frozen=True, slots=True)
class Spool:
    """The folder of events; all calls block."""

    folder: RootedPath

    @classmethod
    def of(cls, queue_folder: Path) -> "Spool":
        """Return the spool of the queue in this folder; ``make`` creates it."""
        return cls(RootedPath(queue_folder, ("events",)))

    def make(self) -> None:
        """Create the folder, and remove what killed writers left in it."""
        self.folder.make_folder()
        remove_unfinished(self.folder)

    def add(self, paths: Sequence[StorePath]) -> None:
        """Queue these paths; when this returns, they survive a power cut."""
        for content in render_events(paths):
            name = f"{int(time.time())}-{os.getpid()}-{secrets.token_hex(4)}"
            write_file(self.folder / name, [content], self.folder)
        self.folder.sync()

    def names(self) -> list[str]:
        """List the events, the oldest first, at most ``MAX_EVENTS``; none without the folder."""
        try:
            found = (
                (status.st_mtime_ns, path.name)
                for path, status in self.folder.entries()
                if S_ISREG(status.st_mode) and not path.name.startswith(".")
            )
            return [name for _, name in heapq.nsmallest(MAX_EVENTS, found)]
        except FileNotFoundError:
            return []

    def read(
        self,
        known: AbstractSet[str] = frozenset(),
        most_paths: int | None = None,
        store_dir: str | None = None,
    ) -> Iterator[Event]:
        """Yield the events that are not ``known``, the oldest first, until they name so many paths."""
        left = most_paths
        for name in self.names():
            if name in known:
                continue
            if left is not None and left <= 0:
                return
            try:
                event = parse_event(name, (self.folder / name).read_bytes(MAX_EVENT_BYTES), store_dir)
            except FileNotFoundError:
                continue  # removed since
            except OSError as error:
                event = Event(name, problems=(f"event {name}: dropped: {error.strerror}",))
            if left is not None:
                left -= len(event.paths) + len(event.derivations)
            yield event

    def remove(self, names: Iterable[str]) -> None:
        """Remove events that are done with."""
        with suppress(FileNotFoundError):  # the folder itself
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
