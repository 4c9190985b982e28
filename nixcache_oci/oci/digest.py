"""Digests: the names of blobs and manifests. This format uses sha256 only.

Source: OCI image specification, "Descriptors", digests.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Self

from nixcache_oci.errors import DigestError, FormatError

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest; ``str()`` gives ``sha256:<64 hex>``."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise FormatError(f"digest: expected 64 lower-case hex digits, got {self.hex[:80]!r}")

    def __hash__(self) -> int:
        return hash(self.hex)  # half as long as of a tuple of fields; a look at a cache needs 20,000

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``sha256:<64 hex>``; FormatError for another algorithm, or not 64 lower-case hex digits."""
        algorithm, _, digits = text.partition(":")
        if algorithm != "sha256":
            raise FormatError(f"digest: expected sha256:<64 hex>, got {text[:80]!r}")
        return cls(digits)

    @classmethod
    def of(cls, content: bytes | bytearray) -> Self:
        """Hash these bytes."""
        return cls(hashlib.sha256(content).hexdigest())

    def check(self, content: bytes | bytearray) -> None:
        """Check that the bytes have this digest; DigestError if they do not."""
        actual = self.of(content)
        if actual != self:
            raise DigestError(f"{self}: the bytes received ({len(content)}) have digest {actual}")
