"""A sample store object that needs no Nix: its path, narinfo and NAR are all computed here.

It is content-addressed (``source``, recursive sha256), as ``nix store add-path`` would add it.
"""

import hashlib
from typing import Final

from nixcache_oci.nix.content_address import ContentAddress, Method
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import Directory, File, Symlink, dump_tree
from nixcache_oci.nix.narinfo import NarInfo

SAMPLE_NAME: Final = "nixcache-oci-sample"
SAMPLE_TREE: Final = Directory(
    {
        b"README": File(
            b"This store object was computed, packed and signed by nixcache-oci itself.\n"
            b"It came to you out of an OCI repository.\n"
        ),
        b"bin": Directory(
            {b"hello": File(b'#!/bin/sh\necho "Hello from an OCI repository."\n', executable=True)}
        ),
        b"hello": Symlink(b"bin/hello"),
    }
)


def make_sample(store_dir: str) -> tuple[NarInfo, bytes]:
    """Compute the sample.

    Args:
        store_dir: where it is to lie; its path depends on it.

    Returns:
        Its narinfo, not yet pointing at any blob, and its NAR.
    """
    nar = b"".join(dump_tree(SAMPLE_TREE))
    nar_hash = NixHash(hashlib.sha256(nar).digest())
    address = ContentAddress(Method.NAR, nar_hash)
    narinfo = NarInfo(
        store_path=address.store_path(SAMPLE_NAME, (), store_dir),
        url=f"nar/{nar_hash.digest_hex}.nar",
        compression="none",
        nar_hash=nar_hash,
        nar_size=len(nar),
        ca=str(address),
    )
    return narinfo, nar
