"""What the double of GHCR holds: blobs in a folder, manifests, tags and package versions in memory."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from threading import RLock

from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_manners import Manners


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """A manifest or image index, which is one version of the package too.

    Attributes:
        pushed: seconds since the epoch.
    """

    version: int
    digest: Digest
    content: bytes
    media_type: str
    pushed: float

    def blobs(self) -> Iterator[tuple[Digest, int]]:
        """Digest and size of config and layers."""
        document = json.loads(self.content)
        for descriptor in [document.get("config"), *(document.get("layers") or [])]:
            if descriptor:
                yield Digest.parse(descriptor["digest"]), descriptor["size"]

    def children(self) -> Iterator[tuple[Digest, int]]:
        """Digest and size of an image index's manifests."""
        for descriptor in json.loads(self.content).get("manifests") or []:
            yield Digest.parse(descriptor["digest"]), descriptor["size"]


@dataclass(slots=True)
class HeldRepository:
    """One repository, which is one package.

    Attributes:
        tags: in the order of their first push.
        manifests: in the order of their push.
        is_package: whether there ever was a manifest: blobs alone make no package.
        lags: how many reads still come too early, for each tag and digest.
    """

    blobs: dict[Digest, int] = field(default_factory=dict)
    manifests: dict[Digest, HeldManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    is_package: bool = False
    lags: dict[str, int] = field(default_factory=dict)

    def find(self, tag_or_digest: str) -> HeldManifest | None:
        if ":" not in tag_or_digest:
            tagged = self.tags.get(tag_or_digest)
            return self.manifests.get(tagged) if tagged else None
        return next((held for digest, held in self.manifests.items() if str(digest) == tag_or_digest), None)

    def tags_of(self, digest: Digest) -> list[str]:
        return [tag for tag, tagged in self.tags.items() if tagged == digest]

    def is_lagging(self, key: str) -> bool:
        """Tell whether this read comes too early; counts it."""
        left = self.lags.get(key, 0)
        self.lags[key] = max(0, left - 1)
        return left > 0


class GhcrStore:
    """All repositories; hold ``lock`` over whatever takes more than one step."""

    def __init__(self, folder: Path, manners: Manners) -> None:
        self.folder = folder
        self._manners = manners
        self.lock = RLock()
        self._repositories: dict[str, HeldRepository] = {}
        self._versions = count(1001)
        self._uploads = count(1)
        (folder / "blobs").mkdir()

    def blob_path(self, digest: Digest) -> Path:
        return self.folder / "blobs" / digest.hex

    def staging_path(self) -> Path:
        return self.folder / f"upload-{next(self._uploads)}"

    def find(self, name: str) -> HeldRepository | None:
        return self._repositories.get(name)

    def exists(self, name: str) -> bool:
        held = self.find(name)
        return held is not None and held.is_package

    def find_manifest(self, name: str, tag_or_digest: str) -> HeldManifest | None:
        held = self.find(name)
        return held.find(self.stored(tag_or_digest)) if held else None

    def stored(self, tag_or_digest: str) -> str:
        """How a tag is stored."""
        return tag_or_digest.lower() if self._manners.folds_tags else tag_or_digest

    def get_or_make(self, name: str) -> HeldRepository:
        with self.lock:
            return self._repositories.setdefault(name, HeldRepository())

    def adopt_blob(self, name: str, digest: Digest, staged: Path) -> None:
        """Move a whole upload into the repository."""
        with self.lock:
            size = staged.stat().st_size
            staged.replace(self.blob_path(digest))
            self.get_or_make(name).blobs[digest] = size

    def put_blob(self, name: str, digest: Digest, content: bytes | Path) -> None:
        staged = self.staging_path()
        if isinstance(content, bytes):
            staged.write_bytes(content)
        else:
            shutil.copyfile(content, staged)
        self.adopt_blob(name, digest, staged)

    def put_manifest(
        self, name: str, tag_or_digest: str | None, content: bytes, media_type: str
    ) -> HeldManifest:
        digest = Digest.of(content)
        with self.lock:
            held = self.get_or_make(name)
            manifest = held.manifests.get(digest)
            if manifest is None or manifest.media_type != media_type:
                manifest = HeldManifest(next(self._versions), digest, content, media_type, time.time())
                held.manifests[digest] = manifest
                held.is_package = True
            if tag_or_digest is not None and ":" not in tag_or_digest:
                tag = self.stored(tag_or_digest)
                former, held.tags[tag] = held.tags.get(tag), digest
                if self._manners.drops_overwritten and former and not held.tags_of(former):
                    del held.manifests[former]
            return manifest

    def delete_tag(self, name: str, tag: str) -> bool:
        """Forget a tag alone; tells whether it was there."""
        with self.lock:
            return self.get_or_make(name).tags.pop(self.stored(tag), None) is not None

    def delete_version(self, name: str, version: int) -> bool:
        """Forget a manifest and its tags; tells whether it was there."""
        with self.lock:
            held = self.get_or_make(name)
            manifest = next((each for each in held.manifests.values() if each.version == version), None)
            if manifest is None:
                return False
            for tag in held.tags_of(manifest.digest):
                del held.tags[tag]
            del held.manifests[manifest.digest]
            return True

    def delete_blob(self, name: str, digest: Digest) -> None:
        with self.lock:
            del self.get_or_make(name).blobs[digest]
            if not any(digest in held.blobs for held in self._repositories.values()):
                self.blob_path(digest).unlink()

    def corrupt_blob(self, digest: Digest, offset: int) -> None:
        """Flip the bits of one byte; a reader of the old bytes keeps them."""
        content = bytearray(self.blob_path(digest).read_bytes())
        content[offset] ^= 0xFF
        staged = self.staging_path()
        staged.write_bytes(content)
        staged.replace(self.blob_path(digest))

    def sweep(self) -> list[Digest]:
        """Drop every blob that no manifest of its repository names."""
        swept = []
        with self.lock:
            for name, held in self._repositories.items():
                named = {digest for manifest in held.manifests.values() for digest, _ in manifest.blobs()}
                for digest in [digest for digest in held.blobs if digest not in named]:
                    self.delete_blob(name, digest)
                    swept.append(digest)
        return swept
