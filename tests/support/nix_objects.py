"""Store objects out of a real store, as Nix describes and dumps them."""

from collections.abc import Iterable
from pathlib import Path

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import Signature
from nixcache_oci.nix.store_path import StorePath
from tests.support.nix import NixSandbox
from tests.support.publish import StoreObject


def read_objects(nix: NixSandbox, paths: Iterable[str]) -> list[StoreObject]:
    """Read these paths, but not their closures, out of the main store."""
    objects = []
    for path, info in nix.path_info(paths).items():
        narinfo = NarInfo(
            store_path=StorePath.parse(path),
            url="nar/unknown.nar",
            compression="none",
            nar_hash=NixHash.parse(info["narHash"]),
            nar_size=info["narSize"],
            references=tuple(Path(reference).name for reference in info["references"]),
            deriver=Path(info["deriver"]).name if info.get("deriver") else None,
            sigs=tuple(Signature.parse(signature) for signature in info.get("signatures", ())),
            ca=info.get("ca"),
        )
        objects.append(StoreObject(narinfo, nix.dump(path)))
    return objects
