"""One store, one folder to stage into, and what every staging has to keep to."""

import hashlib
import lzma
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.errors import StoreError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import File
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher import staging
from nixcache_oci.publisher.options import Compression, NarEncoding
from nixcache_oci.publisher.staging import (
    StagedNar,
    is_large,
    stage,
)
from tests.publisher.made_store import MadeStore

LARGE = 5 * 1024 * 1024
LARGE_FILE = File(random.Random(1).randbytes(LARGE // 2).hex().encode())  # compresses to about half
COMPRESSIONS: tuple[Compression, ...] = ("zstd", "xz", "none")


# xz at a level at which it does not hold the tests up.
ENCODINGS = tuple(
    NarEncoding(compression, 0 if compression == "xz" else None) for compression in COMPRESSIONS
)
every_encoding = pytest.mark.parametrize("encoding", ENCODINGS, ids=COMPRESSIONS)


class Stager:
    """Stages objects of one store into one folder; every answer is checked."""

    def __init__(self, store: MadeStore, folder: Path) -> None:
        self._store = store
        self._folder = folder

    def __call__(
        self, info: PathInfo, encoding: NarEncoding | None = None, max_blob_bytes: int | None = None
    ) -> tuple[StagedNar, bytes]:
        encoding = encoding or NarEncoding()
        real_path = self._store.real_path(info)
        staged = stage(info, real_path, self._folder, encoding, lambda: False, max_blob_bytes)
        content = staged.read()
        assert isinstance(staged.content, Path) == is_large(info)
        staged.discard()
        assert list(self._folder.iterdir()) == []
        assert (staged.digest, staged.size) == (Digest.of(content), len(content))
        return staged, content

    def fails(
        self,
        info: PathInfo,
        *words: str,
        encoding: NarEncoding | None = None,
        max_blob_bytes: int | None = None,
    ) -> str:
        """It is refused by name, on one line, and leaves no file."""
        with pytest.raises(StoreError) as error:
            self(info, encoding, max_blob_bytes)
        text = str(error.value)
        assert text.startswith(f"{info.store_path}: ")
        assert "\n" not in text
        for word in words:
            assert word in text
        assert list(self._folder.iterdir()) == []
        return text


def nix_hash(content: bytes) -> NixHash:
    return NixHash(hashlib.sha256(content).digest())


def unpack(staged: StagedNar, content: bytes) -> bytes:
    match staged.narinfo.compression:
        case "zstd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(content)
        case "xz":
            return lzma.decompress(content)
        case _:
            return content


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the pieces that were dumped."""
    sizes: list[int] = []

    def counting_dump(path: Path, *, use_case_hack: bool) -> Iterator[bytes]:
        for piece in dump(path, use_case_hack=use_case_hack):
            sizes.append(len(piece))
            yield piece

    monkeypatch.setattr(staging, "dump", counting_dump)
    return sizes
