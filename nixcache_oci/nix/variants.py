"""Several narinfos of one store path: which one is given, and with whose signatures.

Nix, asked to trust some keys, takes a path from any cache that has it signed by one of them. Who puts several
caches behind one address must not make that fail: a signature covers path, NarHash, NarSize and references,
and not where the NAR lies, so it holds for every narinfo that agrees in these.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, is_signed_by

NIXOS_KEY: Final = PublicKey.parse("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")
"""What Nix trusts unless it is told otherwise."""

MOST_UNITED_SIGNATURES: Final = 64
"""Of one narinfo, its own not counted."""


def is_accepted(narinfo: NarInfo, keys: Sequence[PublicKey]) -> bool:
    """Tell whether a client that trusts these keys takes it: signed by one, or proven by its own address."""
    return is_signed_by(narinfo, keys) or is_content_addressed(narinfo)


def choose_variant(variants: Sequence[NarInfo], keys: Sequence[PublicKey]) -> NarInfo:
    """Choose one of several narinfos of one store path, with the signatures of all that agree with it.

    Args:
        variants: at least one; the first is chosen unless one that disagrees with it has what nobody who
            agrees with it has: a signature by one of these keys, or else any at all.
        keys: those that clients are known to trust.
    """
    best = max(variants, key=lambda one: (is_accepted(one, keys), bool(one.sigs)))  # the first of equals
    chosen = next(one for one in variants if _covered(one) == _covered(best))
    sigs = dict.fromkeys(chosen.sigs)
    room = len(sigs) + MOST_UNITED_SIGNATURES
    for one in variants:
        if _covered(one) == _covered(chosen):
            sigs |= dict.fromkeys(one.sigs)
    united = list(sigs)[:room]
    united += [one for one in best.sigs if one not in united]  # what it was chosen for
    return replace(chosen, sigs=tuple(united))


def _covered(narinfo: NarInfo) -> tuple[object, ...]:
    return narinfo.store_path, narinfo.nar_hash, narinfo.nar_size, frozenset(narinfo.references)
