"""What a publish tells while it works; who shows it, and how, is the command line's matter."""

from typing import Protocol


class Progress(Protocol):
    """Is told what happens during a publish."""

    def note(self, line: str) -> None:
        """Say one line, such as the plan."""

    def begin(self, paths: int, size: int) -> None:
        """Begin to send so many store objects, with so many bytes of NARs, uncompressed.

        Called again for a later round.
        """

    def staged(self, base_name: str, size: int) -> None:
        """One NAR of so many bytes is dumped and compressed."""

    def sent(self, size: int) -> None:
        """One blob or pack of so many bytes went over the line."""

    def skipped(self, size: int) -> None:
        """A blob or pack of so many bytes was there already."""

    def warn(self, line: str) -> None:
        """Something went wrong that does not end the publish."""
