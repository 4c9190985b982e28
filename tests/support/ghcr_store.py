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
class _Lag:
    answers: int
    until: float


@dataclass(slots=True)
class HeldRepository:
    """One repository, which is one package.

    Attributes:
        tags: in the order of their first push.
        manifests: in the order of their push.
        deleted: versions that can be restored, with the tags that they had.
    """

    blobs: dict[Digest, int] = field(default_factory=dict)
    manifests: dict[Digest, HeldManifest] = field(default_factory=dict)
    tags: dict[str, Digest] = field(default_factory=dict)
    deleted: dict[int, tuple[HeldManifest, list[str]]] = field(default_factory=dict)
    _lags: dict[str, _Lag] = field(default_factory=dict)

    def find(self, tag_or_digest: str) -> HeldManifest | None:
        if ":" not in tag_or_digest:
            tagged = self.tags.get(tag_or_digest)
            return self.manifests.get(tagged) if tagged else None
        return next((held for digest, held in self.manifests.items() if str(digest) == tag_or_digest), None)

    def tags_of(self, digest: Digest) -> list[str]:
        return [tag for tag, tagged in self.tags.items() if tagged == digest]

    def delay(self, key: str, answers: int, seconds: float) -> None:
        """Hide something freshly pushed from so many reads, and for so long."""
        self._lags[key] = _Lag(answers, time.monotonic() + seconds)

    def is_lagging(self, key: str) -> bool:
        """Tell whether this read comes too early; counts it."""
        lag = self._lags.get(key)
        if lag is None:
            return False
        if lag.answers:
            lag.answers -= 1
            return True
        return time.monotonic() < lag.until


class GhcrStore:
    """All repositories; hold ``lock`` over whatever takes more than one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        """Tell whether there is a package of this name: blobs alone make none."""
        held = self.find(name)
        return held is not None and bool(held.manifests or held.deleted)

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
            if tag_or_digest is not None and ":" not in tag_or_digest:
                held.tags[tag_or_digest] = digest
            return manifest

    def delete_version(self, name: str, version: int) -> bool:
        """Forget a manifest and its tags; tells whether it was there."""
        with self.lock:
            held = self.get_or_make(name)
            manifest = next((each for each in held.manifests.values() if each.version == version), None)
            if manifest is None:
                return False
            tags = held.tags_of(manifest.digest)
            for tag in tags:
                del held.tags[tag]
            del held.manifests[manifest.digest]
            held.deleted[version] = (manifest, tags)
            return True

    def restore_version(self, name: str, version: int) -> bool:
        """Bring a deleted version back, with those of its tags that are free; tells whether it was there."""
        with self.lock:
            held = self.get_or_make(name)
            if version not in held.deleted:
                return False
            manifest, tags = held.deleted.pop(version)
            held.manifests[manifest.digest] = manifest
            for tag in tags:
                held.tags.setdefault(tag, manifest.digest)
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
