"""The stages of long work, and what every display of them shares."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nixcache_oci.wording import format_share, format_size, inflected


class RunningStage:
    """How far a stage has come; sizes are bytes, times monotonic seconds."""

    def __init__(
        self, display: "Display", doing: str, unit: str, count: int | None, size: int | None
    ) -> None:
        self.doing = doing
        self.began = self.told_at = self.changed_at = display.clock()
        self.is_changed = False
        self._display = display
        self._unit = unit
        self._count, self._size = count, size
        self._count_done = self._size_done = self._size_sent = 0

    def advance(self, count: int = 0, size: int = 0) -> None:
        """Add done things, or bytes of them."""
        self._change(count, size, 0)

    def sent(self, size: int) -> None:
        """Add bytes sent to the repository."""
        self._change(0, 0, size)

    def _change(self, count: int, size: int, sent: int) -> None:
        with self._display.lock:
            self._count_done += count
            self._size_done += size
            self._size_sent += sent
            self.is_changed = True
            self.changed_at = self._display.clock()
            self._display.show(self)

    @property
    def share(self) -> tuple[int, int | None]:
        """How much is done, and of how much: in bytes if their total is known."""
        return (self._size_done, self._size) if self._size else (self._count_done, self._count)

    @property
    def amount(self) -> str:
        """The progress in words, short enough to stand beside a bar."""
        of_all = "" if self._count is None else f" of {self._count:,}"
        noun = inflected(self._count_done if self._count is None else self._count, self._unit)
        parts = [f"{self._count_done:,}{of_all} {noun}"]
        if self._size:
            parts.append(format_share(self._size_done, self._size))
        elif self._size_done:
            parts.append(format_size(self._size_done))
        if self._size_done:
            rate = self._size_done / max(self._display.clock() - self.began, 0.001)
            parts.append(f"{format_size(rate)}/s")
        return ", ".join(parts)

    @property
    def line(self) -> str:
        """The progress in one line."""
        sent = f", {format_size(self._size_sent)} sent" if self._size_sent else ""
        return f"{self.doing}: {self.amount}{sent}"


class Display(ABC):
    """Shows stages, which several threads may advance; implements ``Progress``."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self._stages: list[RunningStage] = []

    @abstractmethod
    def note(self, line: str) -> None:
        """Show one line."""

    def warn(self, line: str) -> None:
        """Show one line, as a warning."""
        self.note(f"warning: {line}")

    @contextmanager
    def stage(
        self, doing: str, unit: str, count: int | None = None, size: int | None = None
    ) -> Iterator[RunningStage]:
        """Show a stage while the block runs."""
        stage = RunningStage(self, doing, unit, count, size)
        if count == 0:  # there is nothing to do, and nothing to show
            yield stage
            return
        with self.lock:
            self._stages.append(stage)
            self.begin(stage)
        try:
            yield stage
        finally:
            with self.lock:
                self._stages.remove(stage)
                self.end(stage)

    @abstractmethod
    def begin(self, stage: RunningStage) -> None:
        """Show a stage that begins."""

    @abstractmethod
    def show(self, stage: RunningStage) -> None:
        """Show that a stage has advanced, if that is due."""

    @abstractmethod
    def end(self, stage: RunningStage) -> None:
        """Show that a stage is over, even if it failed."""

    @abstractmethod
    def look(self) -> None:
        """Show what is due, whether or not anything advanced."""
