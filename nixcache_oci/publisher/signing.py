"""Signing narinfos for the cache; the local store is not changed.

Source: design section 4, promise 4.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from nixcache_oci.errors import Error
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint, has_signature

MAX_SIGNATURES: Final = 64
"""Limit per published narinfo, our own first: readers refuse one of over 256 lines."""


def sign_all(narinfos: Iterable[NarInfo], keys: Sequence[SecretKey]) -> list[NarInfo]:
    """Add missing signatures; keep those that verify, and those by other keys.

    Raises:
        Error: a signature made just now does not verify.
    """
    public_keys = [key.public_key for key in keys]
    own = {key.name for key in keys}
    signed = []
    for narinfo in narinfos:
        covered = fingerprint(narinfo)
        sigs = list(narinfo.sigs)
        for key, public_key in zip(keys, public_keys, strict=True):
            if has_signature(public_key, covered, sigs):
                continue
            sig = key.sign(covered)
            if not public_key.verify(covered, sig):
                raise Error(f"{narinfo.store_path}: the signature made with key {key.name} does not verify")
            # One of this name that does not verify is by another key, or of another build.
            sigs = [*(one for one in sigs if one.key_name != key.name), sig]
        if len(sigs) > MAX_SIGNATURES:
            sigs = sorted(sigs, key=lambda sig: sig.key_name not in own)[:MAX_SIGNATURES]
        signed.append(replace(narinfo, sigs=tuple(sigs)))
    return signed
