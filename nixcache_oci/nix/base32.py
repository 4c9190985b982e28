"""nix32: the base 32 in which Nix writes hashes.

The letters are the digits, of an alphabet of its own, of the number whose bytes these are, the lowest first.
So ``int`` reads them, several times as fast as the standard library's codec for base 32 would. That codec
writes them, given whole groups of five bytes (eight letters) in reverse order.

Source: Nix manual, "Store path", digest; Nix, ``libutil/base-nix-32``.
"""

import base64
import re
from typing import Final

from nixcache_oci.errors import FormatError
from nixcache_oci.wording import counted

ALPHABET: Final = "0123456789abcdfghijklmnpqrsvwxyz"
LETTER: Final = "[0-9a-df-np-sv-z]"
"""One letter of the alphabet, as a regular expression."""

_STANDARD = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_TO_NIX = bytes.maketrans(_STANDARD, ALPHABET.encode())
# int() reads base 32 with other letters, in the same order: translate one to the other.
_TO_DIGITS = bytes.maketrans(ALPHABET.encode(), b"0123456789abcdefghijklmnopqrstuv")
_TEXT = re.compile(f"{LETTER}*")
_GROUP_BYTES = 5


def encoded_length(size: int) -> int:
    """Tell how many letters this many bytes take."""
    return -(-size * 8 // 5)


def encode(data: bytes) -> str:
    """Write bytes as nix32."""
    padding = bytes(-len(data) % _GROUP_BYTES)
    letters = base64.b32encode(padding + data[::-1]).translate(_TO_NIX).decode()
    return letters[len(letters) - encoded_length(len(data)) :]


def to_number(letters: bytes) -> int:
    """Read nix32 letters, at least one, as the number that they are the digits of; they are not checked."""
    return int(letters.translate(_TO_DIGITS), 32)


def decode(text: str) -> bytes:
    """Read nix32.

    Raises:
        FormatError: a letter outside the alphabet (e, o, t, u, capitals), a length that no number of bytes
            has, or a number too large for the bytes that its length stands for.
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
