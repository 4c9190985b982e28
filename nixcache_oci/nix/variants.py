"""Several narinfos of one store path: which one is served, and with which signatures.

Nix takes a path from any cache that has it signed by a trusted key. A proxy that puts several caches behind
one URL must not break that: a signature covers path, NarHash, NarSize and references, but not the NAR's URL,
so it is valid for every narinfo that agrees in these.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from nixcache_oci.nix.closure import StoreObject
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, is_signed_by

NIXOS_KEY: Final = PublicKey.parse("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=")
"""What Nix trusts by default."""

MOST_UNITED_SIGNATURES: Final = 64
"""Added to one narinfo, its own not counted."""


def is_accepted(narinfo: StoreObject, keys: Sequence[PublicKey]) -> bool:
    """Check whether a client that trusts these keys accepts it: signed by one, or content-addressed."""
    return is_signed_by(narinfo, keys) or is_content_addressed(narinfo)


def choose_variant(variants: Sequence[NarInfo], keys: Sequence[PublicKey]) -> NarInfo:
    """Choose one of several narinfos of one store path, with the signatures of all that agree with it.

    The first is chosen, unless only one that disagrees with it is signed by one of these keys, which clients
    trust, or signed at all.
    """
    best = max(variants, key=lambda one: (is_accepted(one, keys), bool(one.sigs)))  # the first of equals
    chosen = next(one for one in variants if _covered(one) == _covered(best))
    sigs = dict.fromkeys(chosen.sigs)
    limit = len(sigs) + MOST_UNITED_SIGNATURES
    for one in variants:
        if _covered(one) == _covered(chosen):
            sigs |= dict.fromkeys(one.sigs)
    united = list(sigs)[:limit]
    united += [one for one in best.sigs if one not in united]  # the reason for the choice
    return replace(chosen, sigs=tuple(united))


def _covered(narinfo: NarInfo) -> tuple[object, ...]:
    return narinfo.store_path, narinfo.nar_hash, narinfo.nar_size, frozenset(narinfo.references)
