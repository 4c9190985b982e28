"""The plan: what becomes of each path of a closure, decided before anything is sent.

Pure: a function of what the store says, what the cache lists and which keys there are. Source: design
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
"""Gives the narinfo that the cache lists in a segment that is not condemned."""


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """What becomes of each path, references first.

    Attributes:
        upstream: signed by an upstream's key: clients get them there.
        cached: listed already, and signed by every key.
        relist: listed already, as the store has it, but not signed by every key: the narinfo is listed again,
            without its bytes.
        push: to be sent.
        is_from_store: whether what is listed again may be signed, for the local store has the same.
    """

    upstream: tuple[PathInfo, ...] = ()
    cached: tuple[PathInfo, ...] = ()
    relist: tuple[tuple[PathInfo, NarInfo], ...] = ()
    push: tuple[PathInfo, ...] = ()
    is_from_store: bool = True

    @property
    def paths(self) -> int:
        """How many there are in all."""
        return len(self.upstream) + len(self.cached) + len(self.relist) + len(self.push)

    @property
    def push_bytes(self) -> int:
        """Bytes of the NARs to be sent, uncompressed."""
        return sum(info.nar_size for info in self.push)

    def pushing(self, gone: AbstractSet[str]) -> "PublishPlan":
        """Send what was counted on, and is not there any more; base names."""
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
        """What the cache has to list when all is done."""
        return [*self.cached, *(info for info, _ in self.relist), *self.push]


def make_plan(
    closure: Iterable[PathInfo],
    find_listed: FindListed,
    keys: Sequence[PublicKey],
    upstream_key_names: AbstractSet[str],
    missing_upstream: AbstractSet[HashPart] = frozenset(),
) -> PublishPlan:
    """Decide.

    Args:
        closure: what is to be available, references first.
        find_listed: looks a narinfo up.
        keys: what every listed path is to be signed with.
        upstream_key_names: who signs what clients get elsewhere.
        missing_upstream: paths that an upstream signed and that it was found not to have.
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
            # Where another NAR is listed, only its registry vouches for it: that is never signed, ours is.
            push.append(info)
    return PublishPlan(tuple(upstream), tuple(cached), tuple(relist), tuple(push))


def is_upstreams(info: PathInfo | NarInfo, key_names: AbstractSet[str]) -> bool:
    """Tell whether an upstream's key signed it, by the key's name."""
    return any(sig.key_name in key_names for sig in info.sigs)


def is_signed_by_all(narinfo: NarInfo, keys: Iterable[PublicKey]) -> bool:
    """Tell whether each of these keys made one of the narinfo's signatures."""
    covered = fingerprint(narinfo)
    return all(has_signature(key, covered, narinfo.sigs) for key in keys)


def find_dependents(infos: Iterable[PathInfo], failed: AbstractSet[str]) -> dict[str, str]:
    """Find what must not be listed because of what it refers to: a closure is complete, or not listed.

    Args:
        infos: references first.
        failed: base names that could not be sent.

    Returns:
        The failed base name that each of them reaches, by its own.
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
