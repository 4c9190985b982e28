"""Store objects made up for tests: right in every byte, though no builder ever ran."""

import hashlib

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.nix import base32
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import File, dump_tree
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart, StorePath
from nixcache_oci.oci.digest import Digest
from tests.support.publish import StoreObject


def hash_part_of(seed: str) -> HashPart:
    return HashPart(base32.encode(hashlib.sha256(seed.encode()).digest()[:20]))


def store_object(
    seed: str, *, contents: bytes | None = None, references: tuple[str, ...] = ()
) -> StoreObject:
    """Make an object named after its seed; the NAR holds one file."""
    nar = b"".join(dump_tree(File(contents if contents is not None else f"contents of {seed}\n".encode())))
    path = StorePath("/nix/store", hash_part_of(seed), f"object-{seed}")
    narinfo = NarInfo(
        store_path=path,
        url=str(NarUrl(Digest.of(nar))),
        compression="none",
        nar_hash=NixHash(hashlib.sha256(nar).digest()),
        nar_size=len(nar),
        references=references,
    )
    return StoreObject(narinfo, nar)
