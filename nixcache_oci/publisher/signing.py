"""Signing narinfos on their way into the cache: the local store never learns of it.

Source: design section 4, promise 4.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from nixcache_oci.errors import Error
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, SecretKey, fingerprint, has_signature
from nixcache_oci.wording import counted

MAX_SIGNATURES: Final = 64
"""Of a published narinfo, the own ones first where there are more: readers refuse one of over 256 lines."""

_MOST_NAMES: Final = 3  # of recorded keys, in one line


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why clients would refuse what is about to be published.

    Attributes:
        what: they would refuse, and why.
        remedy: what to do about it, the flag that publishes all the same included.
    """

    what: str
    remedy: str


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


def sign_all(narinfos: Iterable[NarInfo], keys: Sequence[SecretKey]) -> list[NarInfo]:
    """Add the signatures that are missing, and keep those that verify or that are others'.

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
            # One of this key's name that does not verify is of another key, or of another build.
            sigs = [*(one for one in sigs if one.key_name != key.name), sig]
        if len(sigs) > MAX_SIGNATURES:
            sigs = sorted(sigs, key=lambda sig: sig.key_name not in own)[:MAX_SIGNATURES]
        signed.append(replace(narinfo, sigs=tuple(sigs)))
    return signed
