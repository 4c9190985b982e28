"""Checks that the signing key, the cache's recorded keys and the configured keys match."""

from collections.abc import Sequence
from typing import Final

from nixcache_oci.maintenance.checks.finding import Finding, good, warning, wrong
from nixcache_oci.nix.signature import PublicKey, SecretKey

SIGNING_KEY: Final = "signing key"
PUBLIC_KEYS: Final = "public keys"

_SAMPLE: Final = "1;/nix/store/00000000000000000000000000000000-sample;sha256:0;1;"


def check_signing_keys(
    keys: Sequence[SecretKey], recorded: Sequence[PublicKey] | None, configured: Sequence[PublicKey]
) -> list[Finding]:
    """Try each signing key, and check that clients will know it.

    Recorded are no keys if the cache is empty, and None if it could not be read.
    """
    if not keys:
        return [
            wrong(
                SIGNING_KEY,
                "none: clients refuse unsigned paths",
                "run: nixcache-oci keygen NAME-1; then: export NIXCACHE_SIGNING_KEY_FILE=NAME-1.sec",
            )
        ]
    return [_check_one(key, recorded, configured) for key in keys]


def check_public_keys(configured: Sequence[PublicKey], recorded: Sequence[PublicKey] | None) -> Finding:
    """Check that a client would accept what the cache holds."""
    names = ", ".join(key.name for key in configured)
    if not configured:
        return good(PUBLIC_KEYS, "NIXCACHE_PUBLIC_KEYS is not set: Nix alone checks signatures")
    if recorded is None:
        return good(PUBLIC_KEYS, f"{names}; the cache's records could not be read")
    if recorded and not set(recorded) & set(configured):
        known = " ".join(map(str, recorded))
        return wrong(
            PUBLIC_KEYS,
            f"NIXCACHE_PUBLIC_KEYS ({names}) has none of the keys that the cache records: {known}",
            "ask the cache's owner which key is right, and set it; with the wrong one, nothing is served",
        )
    return good(PUBLIC_KEYS, f"{names}, as the cache records" if recorded else f"{names}; none recorded yet")


def _check_one(
    key: SecretKey, recorded: Sequence[PublicKey] | None, configured: Sequence[PublicKey]
) -> Finding:
    public = key.public_key
    if not public.verify(_SAMPLE, key.sign(_SAMPLE)):
        return wrong(
            SIGNING_KEY, f"{key.name}: its signature does not verify", "run: nixcache-oci keygen NAME-1"
        )
    if configured and public not in configured:
        return wrong(
            SIGNING_KEY,
            f"{key.name}: its public key is not in NIXCACHE_PUBLIC_KEYS",
            f"add {public} there, on the clients too; otherwise nobody is served what it signs",
        )
    if recorded and public not in recorded:
        if any(other.name == key.name for other in recorded):
            return wrong(
                SIGNING_KEY,
                f"{key.name}: the cache records another key of this name",
                "sign with the right one; a new key needs a new name, because Nix knows one key per name",
            )
        return warning(
            SIGNING_KEY,
            f"{key.name}: the cache records {', '.join(one.name for one in recorded)} only",
            f"let clients trust {public} as well, then publish once with --new-key",
        )
    if recorded is None:
        return good(SIGNING_KEY, f"{key.name}: signs and verifies; the cache's records were not read")
    known = "as recorded" if recorded else "the first one here"
    return good(SIGNING_KEY, f"{key.name}: signs and verifies, {known}")
