"""A progress that remembers what it was told."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class ToldStage:
    """One stage.

    Attributes:
        doing, unit, count, size: as it began.
        done: how many things are done.
        size_done: how many bytes of them.
        sent_bytes: what went over the line.
        is_over: whether its block has ended.
    """

    doing: str
    unit: str
    count: int | None
    size: int | None
    done: int = 0
    size_done: int = 0
    sent_bytes: int = 0
    is_over: bool = False

    def advance(self, count: int = 0, size: int = 0) -> None:
        self.done += count
        self.size_done += size

    def sent(self, size: int) -> None:
        self.sent_bytes += size


@dataclass
class Told:
    """What a progress was told: lines, and stages in the order in which they began."""

    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stages: list[ToldStage] = field(default_factory=list)

    def note(self, line: str) -> None:
        self.notes.append(line)

    def warn(self, line: str) -> None:
        self.warnings.append(line)

    @contextmanager
    def stage(
        self, doing: str, unit: str, count: int | None = None, size: int | None = None
    ) -> Iterator[ToldStage]:
        stage = ToldStage(doing, unit, count, size)
        self.stages.append(stage)
        try:
            yield stage
        finally:
            stage.is_over = True

    @property
    def staged(self) -> int:
        """How many store objects were staged for a push."""
        return sum(stage.done for stage in self.stages if stage.doing == "pushing")

    @property
    def sent_bytes(self) -> int:
        return sum(stage.sent_bytes for stage in self.stages)
