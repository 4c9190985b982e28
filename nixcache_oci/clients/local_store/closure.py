"""The order of a closure. No I/O."""

from collections.abc import Iterable

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.nix.store_path import StorePath


def order_by_references(infos: Iterable[PathInfo], roots: Iterable[StorePath]) -> list[PathInfo]:
    """Put every path behind what it refers to, and next to it: what is fetched together lies together.

    Args:
        infos: in any order; references to others than these are passed over.
        roots: where to begin; the same roots give the same order.
    """
    unordered = {info.store_path.base_name: info for info in infos}
    ordered: list[PathInfo] = []
    entered: set[str] = set()
    for root in [*(path.base_name for path in roots), *sorted(unordered)]:
        # Each name is met twice: first its references go on top of it, then it is left.
        open_names = [(root, False)]
        while open_names:
            name, is_left = open_names.pop()
            if is_left:
                ordered.append(unordered[name])
            elif name in unordered and name not in entered:
                entered.add(name)
                open_names.append((name, True))
                open_names += [(reference, False) for reference in reversed(unordered[name].references)]
    return ordered
