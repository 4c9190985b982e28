"""Content addresses: the ``CA`` of a narinfo, from which its store path follows without a signature.

Source: Nix manual, "Complete store path calculation"; Nix, ``libstore/content-address``.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.store_path import StorePath, make_store_path


class Method(Enum):
    """What the hash of a content address was taken of; its value is what stands before the hash."""

    TEXT = "text:"
    FLAT = "fixed:"
    NAR = "fixed:r:"


@dataclass(frozen=True, slots=True)
class ContentAddress:
    """What a store object holds; ``str()`` gives the field's value.

    Attributes:
        method: what ``hash`` was taken of.
        hash: of the file's contents (TEXT, FLAT), or of the NAR with the object's own hash part blanked out.
    """

    method: Method
    hash: NixHash

    def __post_init__(self) -> None:
        if self.method is Method.TEXT and self.hash.algorithm != "sha256":
            raise FormatError(f"content address: text is hashed with sha256 only, not {self.hash.algorithm}")

    def __str__(self) -> str:
        return f"{self.method.value}{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``text:sha256:…``, ``fixed:<algorithm>:…`` or ``fixed:r:<algorithm>:…``.

        Newer kinds (git, blake3) are refused: at them every Nix stops in which they were not switched on.

        Raises:
            FormatError: none of these.
        """
        for method in (Method.TEXT, Method.NAR, Method.FLAT):
            # Nix takes a hash in SRI's form here for none.
            if text.startswith(method.value) and ":" in text.removeprefix(method.value):
                return cls(method, NixHash.parse(text.removeprefix(method.value)))
        raise FormatError(f"content address: expected text:… or fixed:…, got {text[:80]!r}")

    def store_path(
        self, name: str, references: Collection[str], store_dir: str, *, refers_to_itself: bool = False
    ) -> StorePath:
        """Calculate the one store path that holds this content.

        Args:
            name: the object's name.
            references: base names of the other objects that it refers to.
            store_dir: where it lies.
            refers_to_itself: whether the object's own path is among its references.

        Raises:
            FormatError: an object of this kind cannot have such references, or none has this name.
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


class Claim(Protocol):
    """The parts of a narinfo that a content address binds together."""

    @property
    def store_path(self) -> StorePath:
        """What the address has to lead to."""

    @property
    def nar_hash(self) -> NixHash:
        """The sha256 of the NAR."""

    @property
    def references(self) -> tuple[str, ...]:
        """Base names, its own possibly among them."""

    @property
    def ca(self) -> str | None:
        """The content address as written."""


def proves_its_path(narinfo: Claim) -> bool:
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


def is_content_addressed(narinfo: Claim) -> bool:
    """Tell whether the CA field proves both the store path and the NAR, so that no signature is needed.

    That is where the address is the hash of the whole NAR, and NarHash says the same. All other addresses
    are hashes of something else: of a file's contents, or of the NAR with its own hash part blanked out.
    Whoever writes the narinfo can put any NarHash beside them: Nix notices only once it has unpacked the NAR,
    and stops with an error then. Source: facts about Nix clients, "narinfo".
    """
    if narinfo.ca is None or narinfo.store_path.base_name in narinfo.references:
        return False
    address = ContentAddress.parse(narinfo.ca)
    return address == ContentAddress(Method.NAR, narinfo.nar_hash) and proves_its_path(narinfo)
