"""When a batch is published: after some quiet, but soon enough; and when it is tried again. Pure."""

from dataclasses import dataclass
from typing import Final

FIRST_WAIT: Final = 1.0
"""Seconds before a failed batch is tried again; each further failure doubles them."""

MAX_WAIT: Final = 900.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What makes a batch due; all times are seconds."""

    quiet: float = 3.0  # without a new path: a build of many small derivations is one batch
    longest: float = 60.0  # since the first path, however many come
    most_paths: int = 1000  # in a batch

    def is_due(self, first: float, last: float, paths: int, now: float) -> bool:
        """Decide whether a batch whose first and last path came then is due."""
        return paths >= self.most_paths or now - last >= self.quiet or now - first >= self.longest


def wait_after(failures: int) -> float:
    """Choose the seconds to wait after so many failures in a row."""
    return min(FIRST_WAIT * 2.0 ** min(failures - 1, 30), MAX_WAIT)
