"""Content addresses: the ``CA`` of a narinfo, from which its store path follows without a signature.

Source: Nix manual, "Complete store path calculation"; Nix, ``libstore/content-address``.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Self

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.closure import StoreObject
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.store_path import StorePath, make_store_path


class Method(Enum):
    """What is hashed; the value is the prefix of the hash in the field."""

    TEXT = "text:"
    FLAT = "fixed:"
    NAR = "fixed:r:"


@dataclass(frozen=True, slots=True)
class ContentAddress:
    """A hash of what a store object holds; ``str()`` gives the field's value."""

    method: Method  # what is hashed
    hash: NixHash  # of the file's contents (TEXT, FLAT), or of the NAR with the object's own hash part zeroed

    def __post_init__(self) -> None:
        if self.method is Method.TEXT and self.hash.algorithm != "sha256":
            raise FormatError(f"content address: text is hashed with sha256 only, not {self.hash.algorithm}")

    def __str__(self) -> str:
        return f"{self.method.value}{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``text:sha256:…``, ``fixed:<algorithm>:…`` or ``fixed:r:<algorithm>:…``; else FormatError.

        Newer kinds (git, blake3) are refused: every Nix stops at them unless they were enabled.
        """
        for method in (Method.TEXT, Method.NAR, Method.FLAT):
            # Nix does not accept an SRI hash here.
            if text.startswith(method.value) and ":" in text.removeprefix(method.value):
                return cls(method, NixHash.parse(text.removeprefix(method.value)))
        raise FormatError(f"content address: expected text:… or fixed:…, got {text[:80]!r}")

    def store_path(
        self, name: str, references: Collection[str], store_dir: str, *, refers_to_itself: bool = False
    ) -> StorePath:
        """Calculate the one store path that holds this content, and refers to ``references`` besides itself.

        Raises FormatError if this kind cannot have such references, or the name is invalid.
        """
        if (refers_to_itself and not self._is_source) or (references and not self._may_refer):
            raise FormatError(f"content address: {self} cannot have these references")
        if not self._may_refer:
            inner = f"fixed:out:{self.method.value.removeprefix('fixed:')}"
            inner += f"{self.hash.algorithm}:{self.hash.digest_hex}:"
            return make_store_path("output:out", hashlib.sha256(inner.encode()).hexdigest(), name, store_dir)
        parts = ["source" if self._is_source else "text"]
        parts += (f"{store_dir}/{reference}" for reference in sorted(references))
        parts += ["self"] * refers_to_itself
        return make_store_path(":".join(parts), self.hash.digest_hex, name, store_dir)

    @property
    def _is_source(self) -> bool:
        return self.method is Method.NAR and self.hash.algorithm == "sha256"

    @property
    def _may_refer(self) -> bool:
        return self._is_source or self.method is Method.TEXT


def proves_its_path(narinfo: StoreObject) -> bool:
    """Tell whether Nix takes it without a signature: its CA field leads to its store path."""
    own = narinfo.store_path
    if narinfo.ca is None:
        return False
    others = [reference for reference in narinfo.references if reference != own.base_name]
    try:
        address = ContentAddress.parse(narinfo.ca)
        is_own = len(others) < len(narinfo.references)
        return address.store_path(own.name, others, own.store_dir, refers_to_itself=is_own) == own
    except FormatError:
        return False


def is_content_addressed(narinfo: StoreObject) -> bool:
    """Check whether the CA field proves both the store path and the NAR, so that no signature is needed.

    It does if the address is the hash of the whole NAR, equal to NarHash. Other addresses hash a file's
    contents, or the NAR with its own hash part zeroed, and any NarHash can be written beside them: Nix
    notices only after unpacking, and fails. Source: facts about Nix clients, "narinfo".
    """
    if narinfo.ca is None or narinfo.store_path.base_name in narinfo.references:
        return False
    address = ContentAddress.parse(narinfo.ca)
    return address == ContentAddress(Method.NAR, narinfo.nar_hash) and proves_its_path(narinfo)
