"""Store paths: ``<store dir>/<hash part>-<name>``.

Source: Nix manual, "Store path" and "Complete store path calculation".
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

from nixcache_oci.errors import FormatError
from nixcache_oci.nix import base32

_HASH_BYTES = 20
_HASH_CHARACTERS = 32
_HASH_PART = re.compile(f"{base32.CHARACTER}{{{_HASH_CHARACTERS}}}")
# Newer Nix refuses a name whose first part, up to a dash, is "." or "..". Other leading dots are valid.
_NAME_PATTERN = r"(?!\.{1,2}(?:-|$))[0-9A-Za-z+\-._?=]{1,211}"
_NAME = re.compile(_NAME_PATTERN)
_BASE_NAME = re.compile(f"{_HASH_PART.pattern}-{_NAME_PATTERN}")
_MAX_STORE_DIR_CHARACTERS = 4096  # PATH_MAX of Linux
_STORE_DIR = re.compile(r"(?:/[^/\x00-\x1f\x7f]+)+")


class HashPart(str):
    """The 32 nix32 characters that name a store object in a URL or store path."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the characters; see ``parse``."""
        if not _HASH_PART.fullmatch(text):
            raise FormatError(f"hash part: expected {_HASH_CHARACTERS} nix32 letters, got {text[:80]!r}")
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Check 32 nix32 characters, which encode 20 bytes; FormatError for others, such as e, o, t, u."""
        return cls(text)

    @classmethod
    def of(cls, base_name: str) -> Self:
        """Return the hash part of a base name; FormatError if it does not start with one."""
        return cls(base_name[:_HASH_CHARACTERS])


@dataclass(frozen=True, slots=True, order=True)
class StorePath:
    """The path of a store object; ``str()`` gives the full path."""

    store_dir: str  # an absolute path without a trailing slash
    hash_part: HashPart  # identifies the object
    name: str  # 1 to 211 letters, digits and ``+-._?=``, not starting with ``.-`` or ``..-``

    def __post_init__(self) -> None:
        check_store_dir(self.store_dir)
        if not _NAME.fullmatch(self.name):
            raise FormatError(f"store path: not the name of a store object: {self.name[:240]!r}")

    def __str__(self) -> str:
        return f"{self.store_dir}/{self.base_name}"

    @property
    def base_name(self) -> str:
        """``<hash part>-<name>``, as in References."""
        return f"{self.hash_part}-{self.name}"

    @classmethod
    def parse(cls, text: str, store_dir: str | None = None) -> Self:
        """Read the full path of a store object, not of a file inside one; in this store dir, if one is given.

        Raises FormatError for anything else.
        """
        parent, _, base_name = text.rpartition("/")
        if store_dir is not None and parent != store_dir:
            raise FormatError(f"store path: expected one right below {store_dir}, got {text[:300]!r}")
        return cls.from_base_name(base_name, parent)

    @classmethod
    def from_base_name(cls, base_name: str, store_dir: str) -> Self:
        """Join a base name, ``<hash part>-<name>``, to its store dir; FormatError if either is malformed."""
        if base_name[_HASH_CHARACTERS : _HASH_CHARACTERS + 1] != "-":
            raise FormatError(f"store path: expected <hash part>-<name>, got {base_name[:300]!r}")
        return cls(store_dir, HashPart.of(base_name), base_name[_HASH_CHARACTERS + 1 :])


def check_base_name(base_name: str) -> None:
    """Check ``<hash part>-<name>``: five times as fast as making its StorePath; FormatError for all else."""
    if not _BASE_NAME.fullmatch(base_name):
        raise FormatError(f"store path: expected <hash part>-<name>, got {base_name[:300]!r}")


@lru_cache(maxsize=8)  # most machines have one
def check_store_dir(store_dir: str) -> None:
    """Check a store dir: an absolute path, not too long, without a trailing slash; else FormatError.

    No part of it is empty, ``.`` or ``..``.
    """
    is_short = len(store_dir) < _MAX_STORE_DIR_CHARACTERS
    if (
        not is_short
        or not _STORE_DIR.fullmatch(store_dir)
        or not {".", ".."}.isdisjoint(store_dir.split("/"))
    ):
        raise FormatError(
            f"store dir: expected an absolute path without a trailing slash, got {store_dir[:300]!r}"
        )


def make_store_path(path_type: str, inner_digest_hex: str, name: str, store_dir: str) -> StorePath:
    """Calculate the path of a store object from what identifies it; FormatError for a bad name or store dir.

    ``path_type`` is such as ``output:out``, or ``source`` or ``text`` followed by references; the digest is
    the sha256 of what the type says. Another store dir gives another hash part.
    """
    pre_image = f"{path_type}:sha256:{inner_digest_hex}:{store_dir}:{name}"
    digest = hashlib.sha256(pre_image.encode()).digest()
    folded = bytearray(_HASH_BYTES)
    for position, byte in enumerate(digest):
        folded[position % _HASH_BYTES] ^= byte
    return StorePath(store_dir, HashPart(base32.encode(bytes(folded))), name)
