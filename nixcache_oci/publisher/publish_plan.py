"""The plan of a publish, decided before anything is sent. Pure.

It says what happens to each path, what clients would refuse, and whether anything has to be written at all: a
publish that sends nothing needs a record only if that changes what gc counts. Skipping one must not change a
decision of ``maintenance.gc.roots``, now or later; if in doubt, a record is written. Source: design sections
2, "Table", 4, promise 5, and 5, promise 1.
"""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Final

from nixcache_oci.cache.record import PUSH_SCOPE_START, UNRECORDED, PublishRecord
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, fingerprint, has_signature
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.wording import counted

_MOST_NAMES: Final = 3  # of recorded keys, in one line

FindListed = Callable[[HashPart], NarInfo | None]
"""Returns the narinfo that the cache lists in a segment that is not condemned."""


@dataclass(frozen=True, slots=True)
class PublishPlan:
    """What happens to each path, references first."""

    upstream: tuple[PathInfo, ...] = ()  # signed by an upstream's key: clients get them there
    cached: tuple[PathInfo, ...] = ()  # listed already, and signed by every key
    relist: tuple[tuple[PathInfo, NarInfo], ...] = ()  # listed, but not signed by every key: list it again
    push: tuple[PathInfo, ...] = ()  # to be sent
    is_from_store: bool = True  # whether `relist` may be signed, because the local store has the same

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
    """Plan a publish of a closure, references first; every key shall sign every listed path.

    Paths signed by an upstream's key are left to it, unless they are in ``missing_upstream``.
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
    """Find what must not be listed because it refers to a failed path; ``infos`` are references first.

    Returns the failed base name that each reaches, by base name.
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


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why clients would refuse what is about to be published."""

    what: str  # they would refuse, and why
    remedy: str  # what to do about it, the flag that publishes all the same included


def doubt_unsigned(number: int) -> Doubt | None:
    """Doubt so many paths that nobody vouches for."""
    if not number:
        return None
    return Doubt(
        f"{counted(number, 'unsigned path')}, which Nix refuses unless it is told to trust anything",
        "set NIXCACHE_SIGNING_KEY_FILE or NIX_SIGNING_KEY (nixcache-oci keygen makes a key), or give "
        "--allow-unsigned",
    )


def doubt_new_keys(keys: Iterable[PublicKey], recorded: Sequence[PublicKey]) -> Doubt | None:
    """Doubt keys that the cache does not record; the first key of a cache is in no doubt."""
    new = [key.name for key in keys if key not in recorded]
    if not new or not recorded:
        return None
    names = list(dict.fromkeys(key.name for key in recorded))
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    taken = "; a new key needs a new name, for Nix knows one key of a name" if set(new) & set(names) else ""
    return Doubt(
        f"the signing key {', '.join(new)} is not the one that the cache records "
        f"({', '.join(names[:_MOST_NAMES])}{more}), and clients refuse it until they trust it, too",
        f"sign with the recorded key, or publish with --new-key{taken}",
    )


def changes_nothing(record: PublishRecord, recorded: Iterable[PublishRecord]) -> bool:
    """Check whether gc counts the same without this record, given those of all scopes.

    If the newest run of a scope left several records, none is skipped: a run may have several jobs.
    """
    scope = [one for one in recorded if one.scope == record.scope]
    if not scope:
        return False
    newest = max(one.time for one in scope)
    if newest > record.time or record.time - newest >= UNRECORDED:
        return False
    if _is_whole(record):
        last = _only([one for one in scope if one.time == newest])
        return (
            last is not None
            and _is_whole(last)
            and sum(one.run == last.run for one in scope) == 1
            and set(last.roots) == set(record.roots)
            and set(last.failed) == set(record.failed)
            and last.extra == record.extra
        )
    names = {name for name, _ in record.roots}
    return not record.failed and not record.extra and all(_is_current(record, name, scope) for name in names)


def _is_current(record: PublishRecord, name: str, scope: Sequence[PublishRecord]) -> bool:
    """Check whether the last record of a name says the same."""
    paths = {path for root, path in record.roots if root == name}
    named = [one for one in scope if name in one.failed or any(root == name for root, _ in one.roots)]
    newest = max((one.time for one in named), default=None)
    last = _only([one for one in named if one.time == newest])
    return (
        last is not None
        and sum(one.run == last.run for one in named) == 1
        and name not in last.failed
        and {path for root, path in last.roots if root == name} == paths
        and not any(_is_whole(one) and one.time >= last.time and one is not last for one in scope)
    )


def _is_whole(record: PublishRecord) -> bool:
    """Check whether it supersedes names that it lacks."""
    return not record.is_partial and not record.scope.startswith(PUSH_SCOPE_START)


def _only(records: Sequence[PublishRecord]) -> PublishRecord | None:
    return records[0] if len(records) == 1 else None
