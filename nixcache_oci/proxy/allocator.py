"""The C library's allocator, told what a proxy does: it takes and gives back pieces of 256 KiB all the time.

Left alone, glibc returns each such piece to the kernel at once and asks for it anew, and the kernel has to
clear every page again: measured at a quarter of the time that a large NAR takes. So a few MiB stay here.

Source: mallopt(3).
"""

import ctypes
from typing import Final

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_KEPT_BYTES: Final = 16 * 1024 * 1024
# Above any piece that streams; packs are larger, stay for minutes, and are returned when they are dropped.
_RETURNED_ABOVE_BYTES: Final = 2 * 1024 * 1024


def keep_freed_memory() -> None:
    """Let freed pieces stay with the process, up to 16 MiB; nothing happens without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or none by that name
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _RETURNED_ABOVE_BYTES)
