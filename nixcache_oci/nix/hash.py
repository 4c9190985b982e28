"""Hashes as Nix writes them: NarHash, FileHash, and the hash in a content address.

Source: Nix manual, "Store path" and narinfo examples; SRI is W3C "Subresource Integrity".
"""

import base64
import binascii
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from nixcache_oci.errors import FormatError
from nixcache_oci.nix import base32
from nixcache_oci.wording import counted

DIGEST_SIZES: Final = MappingProxyType({"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64})
"""Bytes in the digest of each algorithm that every Nix knows."""

_BEGINNING = re.compile(r"([a-z0-9]+)([:-])")
_HEX = re.compile(r"[0-9A-Fa-f]*")


@dataclass(frozen=True, slots=True)
class NixHash:
    """A digest and its algorithm; ``str()`` gives ``sha256:<nix32>``."""

    digest: bytes  # the raw digest
    algorithm: str = "sha256"  # a key of ``DIGEST_SIZES``

    def __post_init__(self) -> None:
        size = DIGEST_SIZES.get(self.algorithm)
        if size is None:
            known = ", ".join(DIGEST_SIZES)
            raise FormatError(f"hash: expected one of {known}, got {self.algorithm[:40]!r}")
        if len(self.digest) != size:
            raise FormatError(f"hash: {self.algorithm} has {counted(size, 'byte')}, got {len(self.digest)}")

    def __str__(self) -> str:
        return f"{self.algorithm}:{base32.encode(self.digest)}"

    @property
    def digest_hex(self) -> str:
        """The digest in lower-case hex; a FileHash has the hex of its blob's digest."""
        return self.digest.hex()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``<algorithm>:<digest>`` in base 16, nix32 or base 64, or SRI's ``<algorithm>-<base 64>``.

        The length tells the encoding. Raises FormatError for any other form, or an algorithm that not every
        Nix knows.
        """
        match = _BEGINNING.match(text)
        if match is None or match[1] not in DIGEST_SIZES:
            raise FormatError(f"hash: expected <algorithm>:<digest>, got {text[:80]!r}")
        algorithm, rest = match[1], text[match.end() :]
        size = DIGEST_SIZES[algorithm]
        if match[2] == ":" and len(rest) == 2 * size and _HEX.fullmatch(rest):
            return cls(bytes.fromhex(rest), algorithm)
        if match[2] == ":" and len(rest) == base32.encoded_length(size):
            return cls(base32.decode(rest), algorithm)
        try:
            # Nix does not require padding in SRI.
            padding = "=" * (-len(rest) % 4) if match[2] == "-" else ""
            return cls(base64.b64decode(rest + padding, validate=True), algorithm)
        except (ValueError, binascii.Error, FormatError):
            raise FormatError(f"hash: no {algorithm} in base 16, nix32 or base 64: {text[:160]!r}") from None
