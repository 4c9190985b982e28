"""The queue's folder: its spool, its lock, links for the garbage collector, and what `queue status` tells."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Final

from nixcache_oci.clients.durable_file import locked, write_file
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import RegistryError
from nixcache_oci.queue.spool import Spool

_MAX_STATE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class QueueState:
    """How publishing went lately; times are texts, as ``format_time`` writes them."""

    published: str | None = None  # when a batch was published last
    published_paths: int = 0  # of that batch
    failures: int = 0  # since then
    failure: str | None = None  # why the last one failed
    next_try: str | None = None


@dataclass(frozen=True, slots=True)
class QueueFolder:
    """The folder; all calls block."""

    path: Path

    @property
    def spool(self) -> Spool:
        """The events."""
        return Spool.of(self.path)

    @property
    def links(self) -> Path:
        """The folder of links that keep queued paths from Nix's garbage collector."""
        return self.path / "roots"

    @property
    def mark(self) -> RootedPath:
        """The file that says how far the store was watched; there is none while it is not watched."""
        return RootedPath(self.path, ("watched",))

    @property
    def used_mark(self) -> RootedPath:
        """The file that says how far it was looked for what the store has of the cache."""
        return RootedPath(self.path, ("used",))

    @property
    def was_watching(self) -> bool:
        """Tell whether whoever published last watched the store."""
        return self.mark.stat() is not None

    def stop_watching(self) -> None:
        """Let the next watch begin at its present."""
        self.mark.unlink(missing_ok=True)

    @contextmanager
    def locked(self, seconds: float) -> Iterator[bool]:
        """Hold the lock of who publishes; yields whether it could be had within these seconds."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(RootedPath(self.path, ("lock",)), seconds, Event()))
            except RegistryError:
                yield False
            else:
                yield True

    def hurry(self) -> None:
        """Ask whoever publishes not to wait for quiet, nor after a failure."""
        self._hurry.touch()

    def is_hurried(self) -> bool:
        """Tell whether somebody asked that, and nobody has read all that was queued before since."""
        return self._hurry.exists()

    def end_hurry(self) -> None:
        """Take note of it."""
        self._hurry.unlink(missing_ok=True)

    def read_state(self) -> QueueState:
        """Read how publishing went; nothing is known of it without a readable file."""
        try:
            return QueueState(**json.loads(self._state.read_bytes(_MAX_STATE_BYTES)))
        except (OSError, ValueError, TypeError):
            return QueueState()

    def write_state(self, state: QueueState) -> None:
        """Write how publishing went."""
        write_file(self._state, [json.dumps(asdict(state)).encode()], RootedPath(self.path))

    @property
    def _hurry(self) -> Path:
        return self.path / "hurry"

    @property
    def _state(self) -> RootedPath:
        return RootedPath(self.path, ("state.json",))
