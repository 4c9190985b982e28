"""What long work tells while it goes on; who shows it, and how, is the command line's matter."""

from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol


class Stage(Protocol):
    """Is told how far one stage of the work has come, from any thread."""

    def advance(self, count: int = 0, size: int = 0) -> None:
        """So many more things are done, or so many more bytes of them."""

    def sent(self, size: int) -> None:
        """So many bytes went over the line to the repository."""


class Progress(Protocol):
    """Is told what happens, from any thread."""

    def note(self, line: str) -> None:
        """Say one line that nobody has to act upon, such as the plan."""

    def warn(self, line: str) -> None:
        """Something went wrong that does not end the work."""

    def stage(
        self, doing: str, unit: str, count: int | None = None, size: int | None = None
    ) -> AbstractContextManager[Stage]:
        """Show, for as long as the block runs, how far a stage has come; several may run at once.

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
