"""nix32: the base 32 in which Nix writes hashes.

The characters are the digits of the little-endian number that the bytes are, in an alphabet of Nix's own. So
``int`` decodes them, several times as fast as the standard library's base 32 codec. That codec encodes, given
whole groups of five bytes (eight characters) in reverse order.

Source: Nix manual, "Store path", digest; Nix, ``libutil/base-nix-32``.
"""

import base64
import re
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.wording import counted

ALPHABET: Final = "0123456789abcdfghijklmnpqrsvwxyz"
CHARACTER: Final = "[0-9a-df-np-sv-z]"
"""One character of the alphabet, as a regular expression."""

_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_TO_NIX = bytes.maketrans(_STANDARD, ALPHABET.encode())
# int() reads base 32 in another alphabet, in the same order.
_TO_DIGITS = bytes.maketrans(ALPHABET.encode(), b"0123456789abcdefghijklmnopqrstuv")
_TEXT = re.compile(f"{CHARACTER}*")
_GROUP_BYTES = 5


def encoded_length(size: int) -> int:
    """Return how many characters this many bytes take."""
    return -(-size * 8 // 5)


def encode(data: bytes) -> str:
    """Encode bytes as nix32."""
    padding = bytes(-len(data) % _GROUP_BYTES)
    text = base64.b32encode(padding + data[::-1]).translate(_TO_NIX).decode()
    return text[len(text) - encoded_length(len(data)) :]


def to_number(digits: bytes) -> int:
    """Decode nix32 characters, at least one, to a number; they are not validated."""
    return int(digits.translate(_TO_DIGITS), 32)


def decode(text: str) -> bytes:
    """Decode nix32.

    Raises FormatError for a character outside the alphabet (e, o, t, u, capitals), an impossible length, or a
    number too large for its length.
    """
    if not _TEXT.fullmatch(text):
        raise FormatError(f"nix32: expected letters of {ALPHABET}, got {text[:80]!r}")
    size = len(text) * 5 // 8
    if encoded_length(size) != len(text):
        raise FormatError(f"nix32: nothing has {counted(len(text), 'letter')}: {text[:80]!r}")
    try:
        return to_number(text.encode() or b"0").to_bytes(size, "little")
    except OverflowError:
        raise FormatError(
            f"nix32: the bits that fill up the first letter are not zero: {text[:80]!r}"
        ) from None
