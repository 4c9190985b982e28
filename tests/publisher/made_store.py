"""Store objects made up in a folder of the test, with what a store says of them."""

from collections.abc import Sequence
from pathlib import Path

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import Node, dump_tree
from nixcache_oci.nix.nar_files import restore
from nixcache_oci.nix.signature import Signature
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.digest import Digest
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.objects import hash_part_of


def made_path(seed: str) -> StorePath:
    return StorePath("/nix/store", hash_part_of(seed), seed)


def made_info(
    seed: str,
    nar: bytes = b"a NAR",
    *,
    references: Sequence[str] = (),
    sigs: Sequence[Signature] = (),
) -> PathInfo:
    """Describe an object that is named after its seed and refers to those of other seeds."""
    return PathInfo(
        store_path=made_path(seed),
        nar_hash=NixHash(bytes.fromhex(Digest.of(nar).hex)),
        nar_size=len(nar),
        references=tuple(made_path(reference).base_name for reference in references),
        sigs=tuple(sigs),
    )


class MadeStore:
    """A folder of store objects."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def add(self, seed: str, node: Node, *, references: Sequence[str] = ()) -> PathInfo:
        """Put an object in."""
        nar = b"".join(dump_tree(node))
        info = made_info(seed, nar, references=references)
        restore([nar], self.real_path(info))
        return info

    def real_path(self, info: PathInfo) -> Path:
        return self._folder / info.store_path.base_name


def real_infos(nix: NixSandbox, paths: Sequence[str]) -> list[PathInfo]:
    """Describe objects of a real store, as Nix does."""
    return [
        PathInfo(one.store_path, one.nar_hash, one.nar_size, one.references, one.deriver, one.sigs, one.ca)
        for one in (each.narinfo for each in read_objects(nix, paths))
    ]
