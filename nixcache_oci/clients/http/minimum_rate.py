"""How slowly a body may come, at the least.

A time-out that starts anew with each byte ends silence, and no drip. Here each window of waiting has to bring
a certain number of bytes. Time in which nobody waits does not count, for our own clients may read slowly; and
there is no limit on the whole, which may be large.
"""

from typing import Final

from nixcache_oci.wording import counted

# Tables, packs and NARs: eight at once on a line of 64 kbit/s. Nix itself takes as little as a byte a second,
# but what is given up here is resumed where it stopped.
STREAM_BYTES_PER_SECOND: Final = 1024
# What is read whole before it is of use: manifests, lists, answers of a token service. 4 MiB take 17 minutes.
DOCUMENT_BYTES_PER_SECOND: Final = 4 * 1024
# Each connection begins a window of its own. Where a stream breaks off and is resumed, the rate is taken over
# so many windows besides, for which a wait counts as one at most: outages are bounded elsewhere.
RESUMED_WINDOWS: Final = 3


class SlowBodyError(TimeoutError):
    """Too few bytes came for too long."""


class MinimumRate:
    """Watches one body.

    Args:
        window_seconds: of waiting, over which the rate is taken.
        bytes_per_second: the least.
    """

    __slots__ = ("_count", "_least", "_waited", "_window_seconds")

    def __init__(self, window_seconds: float, bytes_per_second: int) -> None:
        self._window_seconds = window_seconds
        self._least = window_seconds * bytes_per_second
        self._waited = 0.0
        self._count = 0

    def add(self, count: int, waited: float) -> None:
        """Count bytes that were waited for.

        Args:
            count: how many.
            waited: seconds.

        Raises:
            SlowBodyError: a window is over that brought too few.
        """
        self._count += count
        self._waited += waited
        if self._waited < self._window_seconds:
            return
        if self._count < self._least:
            raise SlowBodyError(f"only {counted(self._count, 'byte')} in {self._waited:.0f} s")
        self._waited = 0.0
        self._count = 0
