"""The order of a closure: references first."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from nixcache_oci.nix.store_path import StorePath


class HasReferences(Protocol):
    """What a narinfo says, and a store."""

    @property
    def store_path(self) -> StorePath:
        """The object."""

    @property
    def references(self) -> tuple[str, ...]:
        """Base names, its own possibly among them."""


T = TypeVar("T", bound=HasReferences)


def order_by_references(objects: Iterable[T], roots: Iterable[StorePath] = ()) -> list[T]:
    """Put every object behind what it refers to, and next to it: what is fetched together lies together.

    Among its references, names decide: Nix asks for the NARs of what is ready in the order of names.

    Args:
        objects: in any order; references to others than these are passed over.
        roots: where to begin; the same objects and roots give the same order.
    """
    unordered = {one.store_path.base_name: one for one in objects}
    ordered: list[T] = []
    entered: set[str] = set()
    for root in [*(path.base_name for path in roots), *sorted(unordered, key=by_name)]:
        # Each name is met twice: first its references go on top of it, then it is left.
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


def by_name(base_name: str) -> tuple[str, str]:
    """Order base names as Nix does where it has the choice: by name, then by hash part."""
    hash_part, _, name = base_name.partition("-")
    return name, hash_part
