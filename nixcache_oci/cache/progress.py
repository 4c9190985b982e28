"""Progress of long work, as reported to the command line."""

from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol


class Stage(Protocol):
    """Receives the progress of one stage, from any thread."""

    def advance(self, count: int = 0, size: int = 0) -> None:
        """Add done things, or bytes of them."""

    def sent(self, size: int) -> None:
        """Add bytes sent to the repository."""


class Progress(Protocol):
    """Receives notes, warnings and stages, from any thread."""

    def note(self, line: str) -> None:
        """Show an informative line, such as the plan."""

    def warn(self, line: str) -> None:
        """Show a problem that does not end the work."""

    def stage(
        self, doing: str, unit: str, count: int | None = None, size: int | None = None
    ) -> AbstractContextManager[Stage]:
        """Show a stage while the block runs; several may run at once.

        Args:
            doing: what is done, such as ``exporting``.
            unit: what is counted, in the singular, such as ``path``; its plural adds an s.
            count: how many there are; None where that is not known.
            size: bytes of all of them; None where that is not known, or no bytes are told.
        """


class _Silent:
    """Shows nothing."""

    def note(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        pass

    def stage(
        self,
        doing: str,  # noqa: ARG002  part of the protocol, as are those below
        unit: str,  # noqa: ARG002
        count: int | None = None,  # noqa: ARG002
        size: int | None = None,  # noqa: ARG002
    ) -> AbstractContextManager[Stage]:
        return nullcontext(self)

    def advance(self, count: int = 0, size: int = 0) -> None:
        pass

    def sent(self, size: int) -> None:
        pass


SILENT: Final = _Silent()
