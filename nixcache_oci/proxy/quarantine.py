"""Blobs that turned out wrong: they answer 404 for a while, so that a client's resume ends gracefully.

Nix resumes a transfer that was cut; a 404 there makes it turn to another cache, or build. Source: design
section 3, promise 3; facts about Nix clients, "Reading".
"""

import time
from collections.abc import Callable
from typing import Final

from nixcache_oci.oci.digest import Digest

QUARANTINE_SECONDS: Final = 600.0
_MAX_ENTRIES: Final = 1024


class Quarantine:
    """Remembers digests for a while.

    Args:
        clock: seconds, monotonic.
        seconds: how long, counted from the last time that a digest was put in.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, seconds: float = QUARANTINE_SECONDS
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until: dict[Digest, float] = {}

    def add(self, digest: Digest) -> None:
        """Put a blob in."""
        self._until.pop(digest, None)
        self._until[digest] = self._clock() + self._seconds
        while len(self._until) > _MAX_ENTRIES:
            del self._until[next(iter(self._until))]

    def __contains__(self, digest: Digest) -> bool:
        until = self._until.get(digest)
        if until is None:
            return False
        if until <= self._clock():
            del self._until[digest]
            return False
        return True
