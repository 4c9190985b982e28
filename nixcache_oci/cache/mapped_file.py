"""Files mapped into memory, without a descriptor for each.

Python's own maps keep a duplicate of their descriptor (until 3.13 can do without), and a cache may have
thousands of tables. Source: mmap(2), madvise(2); docs/decisions/mapped-files.md.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from typing import Final, cast

from nixcache_oci.errors import FormatError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_MMAP: Final = _LIBC.mmap
_MMAP.restype = ctypes.c_void_p
_MMAP.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,  # off_t; always 0 here
)
_MUNMAP: Final = _LIBC.munmap
_MUNMAP.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MADVISE: Final = _LIBC.madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_FAILED: Final = ctypes.c_void_p(-1).value


def map_file(descriptor: int, when_unmapped: Callable[[], None] = lambda: None) -> memoryview:
    """Map a whole file for reading; the descriptor may be closed then.

    Args:
        descriptor: of the file.
        when_unmapped: called when the view, and all that was cut from it, is gone.

    Raises:
        OSError: it cannot be mapped.
        FormatError: it is empty.
    """
    size = os.fstat(descriptor).st_size
    if not size:
        raise FormatError("table: it is empty")
    address = _MMAP(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    # Of whole pages, so that tables of about one size share a type, which takes a kilobyte.
    pages = -(-size // mmap.PAGESIZE)
    owner = (ctypes.c_char * (pages * mmap.PAGESIZE)).from_address(address)
    # Not at exit, when other threads may still read.
    weakref.finalize(owner, _unmap, address, size, when_unmapped).atexit = False
    return memoryview(owner).cast("B")[:size].toreadonly()


def release(view: memoryview) -> None:
    """Release the memory that reading a file took; its pages are read again when they are needed."""
    owner = cast("ctypes.Array[ctypes.c_char]", view.obj)
    _MADVISE(ctypes.addressof(owner), ctypes.sizeof(owner), mmap.MADV_DONTNEED)


def _unmap(address: int, size: int, when_unmapped: Callable[[], None]) -> None:
    _MUNMAP(address, size)
    when_unmapped()
