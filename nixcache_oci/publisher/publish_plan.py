"""The plan: what happens to each path of a closure, decided before anything is sent.

Pure: depends on what the store has, what the cache lists, and the keys. Source: design
section 4, promise 5.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, fingerprint, has_signature
from nixcache_oci.nix.store_path import HashPart

FindListed = Callable[[HashPart], NarInfo | None]
"""Returns the narinfo that the cache lists in a segment that is not condemned."""


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """What happens to each path, references first.

    Attributes:
        upstream: signed by an upstream's key: clients get them there.
        cached: listed already, and signed by every key.
        relist: listed already, as in the store, but not signed by every key: only the narinfo is listed
            again.
        push: to be sent.
        is_from_store: whether ``relist`` may be signed, because the local store has the same.
    """

    upstream: tuple[PathInfo, ...] = ()
    cached: tuple[PathInfo, ...] = ()
    relist: tuple[tuple[PathInfo, NarInfo], ...] = ()
    push: tuple[PathInfo, ...] = ()
    is_from_store: bool = True

    @property
    def paths(self) -> int:
        """Number of paths."""
        return len(self.upstream) + len(self.cached) + len(self.relist) + len(self.push)

    @property
    def push_bytes(self) -> int:
        """Bytes of the NARs to send, uncompressed."""
        return sum(info.nar_size for info in self.push)

    def pushing(self, gone: AbstractSet[str]) -> "PublishPlan":
        """Move paths that disappeared, by base name, to ``push``."""
        counted_on = [*self.cached, *(info for info, _ in self.relist)]
        again = [info for info in counted_on if info.store_path.base_name in gone]
        return replace(
            self,
            cached=tuple(info for info in self.cached if info.store_path.base_name not in gone),
            relist=tuple(one for one in self.relist if one[0].store_path.base_name not in gone),
            push=tuple(order_by_references([*self.push, *again])),
        )

    @property
    def listed(self) -> list[PathInfo]:
        """What the cache has to list in the end."""
        return [*self.cached, *(info for info, _ in self.relist), *self.push]


def make_plan(
    closure: Iterable[PathInfo],
    find_listed: FindListed,
    keys: Sequence[PublicKey],
    upstream_key_names: AbstractSet[str],
    missing_upstream: AbstractSet[HashPart] = frozenset(),
) -> PublishPlan:
    """Plan a publish.

    Args:
        closure: to be available, references first.
        find_listed: looks up a narinfo in the cache.
        keys: that sign every listed path.
        upstream_key_names: of keys that sign what clients get elsewhere.
        missing_upstream: paths signed by an upstream that lacks them.
    """
    upstream: list[PathInfo] = []
    cached: list[PathInfo] = []
    relist: list[tuple[PathInfo, NarInfo]] = []
    push: list[PathInfo] = []
    for info in closure:
        hash_part = info.store_path.hash_part
        if is_upstreams(info, upstream_key_names) and hash_part not in missing_upstream:
            upstream.append(info)
            continue
        narinfo = find_listed(hash_part)
        if narinfo is not None and is_signed_by_all(narinfo, keys):
            cached.append(info)
        elif narinfo is not None and fingerprint(narinfo) == fingerprint(info):
            relist.append((info, narinfo))
        else:
            # If another NAR is listed, only its registry vouches for it: it is never signed, but ours is.
            push.append(info)
    return PublishPlan(tuple(upstream), tuple(cached), tuple(relist), tuple(push))


def is_upstreams(info: PathInfo | NarInfo, key_names: AbstractSet[str]) -> bool:
    """Check for a signature with the name of an upstream's key."""
    return any(sig.key_name in key_names for sig in info.sigs)


def is_signed_by_all(narinfo: NarInfo, keys: Iterable[PublicKey]) -> bool:
    """Check whether each of these keys signed the narinfo."""
    covered = fingerprint(narinfo)
    return all(has_signature(key, covered, narinfo.sigs) for key in keys)


def find_dependents(infos: Iterable[PathInfo], failed: AbstractSet[str]) -> dict[str, str]:
    """Find what must not be listed because it refers to a failed path.

    Args:
        infos: references first.
        failed: base names that could not be sent.

    Returns:
        The failed base name that each reaches, by base name.
    """
    found: dict[str, str] = {}
    for info in infos:
        base_name = info.store_path.base_name
        if base_name in failed:
            continue
        for reference in info.references:
            if reference in failed or reference in found:
                found[base_name] = found.get(reference, reference)
                break
    return found
