"""One blob of an OCI image layout, open to be read; every call blocks, and may be made on any thread."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from nixcache_oci.errors import FormatError


class LayoutFile:
    """An open blob.

    Args:
        descriptor: of the file, which is ours to close.
        translated: turns foreign errors into ours, with the blob's name.
    """

    def __init__(self, descriptor: int, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._descriptor = descriptor
        self._translated = translated

    def fileno(self) -> int:
        """Give its descriptor."""
        return self._descriptor

    def size(self) -> int:
        """Tell how many bytes it has now."""
        return os.fstat(self._descriptor).st_size

    def read(self, start: int, end: int) -> bytes:
        """Read all bytes from ``start`` to before ``end``.

        Raises:
            RegistryError: there are fewer, or they cannot be read.
        """
        pieces: list[bytes] = []
        while start < end:
            with self._translated():
                piece = os.pread(self._descriptor, end - start, start)
                if not piece:
                    raise FormatError(f"it ended at byte {start} while it was read")
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)

    def duplicate(self) -> "LayoutFile":
        """Open the same file once more."""
        with self._translated():
            return LayoutFile(os.dup(self._descriptor), self._translated)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)
