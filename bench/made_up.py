"""Made-up store objects with the sizes of real ones, and the program's publisher for them, in this process.

A process of ``nixcache-oci push`` takes a second of processor time to start and to ask Nix. Here a store that
is made up says what it has; all else is the program's: it plans, compresses, signs, sends and lists the same.
"""

import hashlib
import math
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.progress import SILENT
from nixcache_oci.cache.record import PUSH_SCOPE_START, PublishRecord
from nixcache_oci.cache.timestamp import now
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore, PathLike
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.publisher.options import PublishOptions
from nixcache_oci.publisher.publisher import Publisher
from tests.support.objects import hash_part_of
from tests.support.registries import REPO

# As in nixpkgs: most paths are small, and most bytes lie in the others.
_SMALL_SHARE: Final = 0.85
_SMALL_KIB: Final = (2, 256)
_LARGE_KIB: Final = (300, 4096)


@dataclass(frozen=True, slots=True)
class MadeUp:
    """A store object: one file of random bytes.

    Attributes:
        name: tells its bytes, too.
        size: of the file.
        references: base names.
    """

    name: str
    size: int
    references: tuple[str, ...] = ()

    @classmethod
    def of_a_usual_size(cls, name: str, references: tuple[str, ...] = ()) -> Self:
        """Choose a size by chance, the same one each time."""
        chance = random.Random(f"size of {name}")
        least, most = _SMALL_KIB if chance.random() < _SMALL_SHARE else _LARGE_KIB
        return cls(name, int(1024 * math.exp(chance.uniform(math.log(least), math.log(most)))), references)

    @property
    def store_path(self) -> StorePath:
        """Where it is."""
        return StorePath("/nix/store", hash_part_of(self.name), self.name)

    def write(self, folder: Path) -> PathInfo:
        """Write its file into a folder of store objects."""
        path = folder / self.store_path.base_name
        path.write_bytes(random.Random(self.name).randbytes(self.size))
        hasher, size = hashlib.sha256(), 0
        for piece in dump(path):
            hasher.update(piece)
            size += len(piece)
        return PathInfo(self.store_path, NixHash(hasher.digest()), size, self.references)


@dataclass(frozen=True, slots=True)
class _MadeUpStore(LocalStore):
    """A store that has nothing else; asks no Nix."""

    made: Sequence[PathInfo]

    @classmethod
    @contextmanager
    def filled(cls, objects: Iterable[MadeUp]) -> Iterator[Self]:
        """Have the files of these while the block runs."""
        with tempfile.TemporaryDirectory(prefix="made-up-store-") as name:
            made = [each.write(Path(name)) for each in objects]
            yield cls(Nix({}, lambda _: None), "/nix/store", Path(name), made)

    async def closure(self, paths: Iterable[PathLike]) -> list[PathInfo]:  # noqa: ARG002  all there is
        """Give all, in the order in which they were made up."""
        return list(self.made)


async def publish(
    host: str, folder: Path, objects: Sequence[MadeUp], roots: Sequence[MadeUp], key: SecretKey
) -> None:
    """Publish as ``nixcache-oci push`` does.

    Args:
        host: of the registry.
        folder: of the index, kept from one publish to the next.
        objects: the closure, references first.
        roots: to be kept by gc.
        key: that signs.
    """
    client = Registry(RegistryReference.of(host, REPO, "nix-cache"), None, push=True, patience=20)
    try:
        with _MadeUpStore.filled(objects) as store:
            publisher = Publisher(
                client,
                store,
                IndexFolder(folder, client.name),
                Upstreams([]),
                PublishOptions(keys=(key,), is_merging=True),
                SILENT,
            )
            plan = await publisher.plan([root.store_path for root in roots])
            records = [
                PublishRecord(
                    f"{PUSH_SCOPE_START}{root.name}",
                    "bench",
                    now(),
                    ((root.name, root.store_path),),
                    is_partial=True,
                )
                for root in roots
            ]
            published = await publisher.publish(plan, records)
            await publisher.merge(published)
    finally:
        await client.close()
    if published.failed:
        raise RuntimeError(f"not published: {dict(published.failed)}")
