"""Store objects, as narinfos and stores describe them, and the orders of a closure: references first."""

from collections.abc import Collection, Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Protocol, TypeVar

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.store_path import StorePath

if TYPE_CHECKING:
    from nixcache_oci.nix.signature import Signature


class StoreObject(Protocol):
    """A store object."""

    @property
    def store_path(self) -> StorePath:
        """Its path."""

    @property
    def nar_hash(self) -> NixHash:
        """The sha256 of its NAR."""

    @property
    def nar_size(self) -> int:
        """Bytes in its NAR."""

    @property
    def references(self) -> tuple[str, ...]:
        """Base names, possibly its own among them."""

    @property
    def sigs(self) -> tuple["Signature", ...]:
        """Its signatures."""

    @property
    def ca(self) -> str | None:
        """The content address as written."""


T = TypeVar("T", bound=StoreObject)


def order_by_references(objects: Iterable[T], roots: Iterable[StorePath] = ()) -> list[T]:
    """Order objects so that each follows its references closely: what is fetched together is stored together.

    References of one object are ordered by name, as Nix asks for NARs that are ready; those to other objects
    are ignored. It starts at the roots: the same objects and roots give the same order.
    """
    unordered = {one.store_path.base_name: one for one in objects}
    ordered: list[T] = []
    entered: set[str] = set()
    for root in [*(path.base_name for path in roots), *sorted(unordered, key=by_name)]:
        # Each name is popped twice: before its references are pushed, and after they are done.
        open_names = [(root, False)]
        while open_names:
            name, is_left = open_names.pop()
            if is_left:
                ordered.append(unordered[name])
            elif name in unordered and name not in entered:
                entered.add(name)
                open_names.append((name, True))
                references = sorted(unordered[name].references, key=by_name, reverse=True)
                open_names += [(reference, False) for reference in references]
    return ordered


def find_tops(objects: Collection[T]) -> list[T]:
    """Return the objects that no other of these refers to, in the given order."""
    referred = {name for one in objects for name in one.references if name != one.store_path.base_name}
    return [one for one in objects if one.store_path.base_name not in referred]


def order_as_unpacked(references: Mapping[str, Iterable[str]]) -> list[str]:
    """Order base names as Nix asks for their NARs: references first, and what is ready by name.

    ``references`` maps each to those that it refers to; others, and itself, are ignored. What refers to each
    other in a circle comes last.
    """
    waits_for: dict[str, int] = {}
    referrers: dict[str, list[str]] = {}
    for name, its_references in references.items():
        within = {one for one in its_references if one in references and one != name}
        waits_for[name] = len(within)
        for one in within:
            referrers.setdefault(one, []).append(name)
    ready = [(by_name(name), name) for name, count in waits_for.items() if count == 0]
    heapify(ready)
    ordered: list[str] = []
    while ready:
        _, name = heappop(ready)
        ordered.append(name)
        del waits_for[name]
        for referrer in referrers.get(name, ()):
            waits_for[referrer] -= 1
            if waits_for[referrer] == 0:
                heappush(ready, (by_name(referrer), referrer))
    return [*ordered, *sorted(waits_for, key=by_name)]


def by_name(base_name: str) -> tuple[str, str]:
    """Sort key of base names, as Nix orders them: by name, then by hash part."""
    hash_part, _, name = base_name.partition("-")
    return name, hash_part
