"""Quarantine of corrupt blobs: they are 404 for a while, so that a client's resume fails gracefully.

Nix resumes a cut transfer; at a 404 it tries another cache, or builds. Source: design
section 3, promise 3; facts about Nix clients, "Reading".
"""

import time
from collections.abc import Callable
from typing import Final

from nixcache_oci.oci.digest import Digest

QUARANTINE_SECONDS: Final = 600.0
_MAX_ENTRIES: Final = 1024


class Quarantine:
    """Remembers digests for some seconds after they were last added; ``clock`` is monotonic."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, seconds: float = QUARANTINE_SECONDS
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._until: dict[Digest, float] = {}

    def add(self, digest: Digest) -> None:
        """Add a blob."""
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
