"""What a request carries: bytes or a file, readable again for every try."""

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body.

    Attributes:
        source: the bytes, or the file that holds them; not shown, for it may hold a secret.
        size: in bytes.
    """

    source: bytes | Path = field(repr=False)
    size: int

    @classmethod
    def of(cls, source: bytes | Path) -> "Body":
        """Measure a source.

        Raises:
            OSError: there is no such file.
        """
        return cls(source, source.stat().st_size if isinstance(source, Path) else len(source))

    def pieces(self) -> Generator[bytes, None, None]:
        """Read it once from its start; a file is open as long as the iterator is.

        Files are read right in the event loop: a piece takes well below a millisecond from a local disk, less
        than handing it to a thread and back.
        """
        if isinstance(self.source, bytes):
            view = memoryview(self.source)
            for position in range(0, self.size, _PIECE_BYTES):
                yield bytes(view[position : position + _PIECE_BYTES])
            return
        with self.source.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece
