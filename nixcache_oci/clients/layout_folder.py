"""The OCI image layout as files: every call blocks, and every write is atomic.

Content is written before ``index.json``, which names it, so a crash leaves the old state. Writers of
``index.json`` take a lock that ends with its process. Other programs, such as skopeo, do not take it: while
one of them writes tags, nothing else should.

Blobs come before the manifest that names them, and nothing protects them until then: ``layout_sweep`` may
remove an old one at any time. So a manifest is only accepted while its blobs are there, and pushing a blob
again makes it young.

Others may have written into the folder: no link in it is followed, and anything but a file is refused with
its name (``RootedPath``).

Source: OCI image specification, "Image Layout".
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event

from nixcache_oci.clients.durable_file import locked, remove_unfinished, write_file
from nixcache_oci.clients.layout_file import LayoutFile
from nixcache_oci.clients.repository import StoredManifest
from nixcache_oci.clients.rooted_path import RootedPath, WrongKindError
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, RegistryError
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.document import clip, parse_document
from nixcache_oci.oci.manifest import MAX_MANIFEST_BYTES, ImageIndex, Manifest, parse_media_type
from nixcache_oci.oci.media_type import ANNOTATION_REF_NAME, IMAGE_INDEXES, MANIFESTS
from nixcache_oci.oci.reference import is_tag, parse_tag_or_digest

LOCK_SECONDS = 60.0
"""How long to wait for other writers, by default."""

_VERSION = "1.0.0"
_VERSION_FILE = "oci-layout"
_VERSION_FILE_CONTENT = b'{"imageLayoutVersion":"%s"}' % _VERSION.encode()
_MAX_VERSION_FILE_BYTES = 4096
_INDEX_FILE = "index.json"
_LOCK_FILE = ".nixcache-lock"
_COPY_BYTES = 2**20

# The name under which an image was exported, as the tag; all other annotations are about the content.
_ANNOTATION_CONTAINERD_NAME = "io.containerd.image.name"


class LayoutFolder:
    """An OCI image layout, whose folder the first write creates.

    Every method raises RegistryError, and NotFoundError if there is no such thing, or no layout. Arguments
    ``stop`` are set when nobody waits for the call any more.
    """

    def __init__(self, root: Path, lock_seconds: float) -> None:
        self.name = f"oci:{root}"
        self._root = RootedPath(root)
        self.blobs = self._root / "blobs" / "sha256"
        self._lock_seconds = lock_seconds

    def prepare(self, stop: Event) -> None:
        """Create the layout, or check the one that is there."""
        with self.translated("write to it"):
            self.blobs.make_folder()
            with self.lock(stop):
                remove_unfinished(self._root)
                try:
                    self.read_index()
                except NotFoundError:
                    # In this order, so that readers never mistake a new layout for a damaged one.
                    write_file(self._root / _INDEX_FILE, [ImageIndex(()).render()], self._root)
                    write_file(self._root / _VERSION_FILE, [_VERSION_FILE_CONTENT], self._root)
                    self._root.sync()

    def resolve(self, tag_or_digest: str) -> Digest:
        """Return the digest of the manifest that a tag points at, whose file exists."""
        with self.translated(f"find {tag_or_digest}"):
            digest = self._find(tag_or_digest)[0]
            self._size_of_manifest(tag_or_digest, digest)
            return digest

    def read_manifest(self, tag_or_digest: str) -> StoredManifest:
        """Read a manifest or image index."""
        with self.translated(f"read manifest {tag_or_digest}"):
            digest, stated = self._find(tag_or_digest)
            if self._size_of_manifest(tag_or_digest, digest) > MAX_MANIFEST_BYTES:
                raise RegistryError(
                    f"{self.name}: {digest} is no manifest: it has over {MAX_MANIFEST_BYTES} bytes"
                )
            content = self.path_of(digest).read_bytes(MAX_MANIFEST_BYTES)
            digest.check(content)
            return StoredManifest(content, parse_media_type(content, stated), digest)

    def tags(self) -> list[str]:
        """List every tag."""
        with self.translated("list tags"):
            names = (each.annotations.get(ANNOTATION_REF_NAME, "") for each in self.read_index().manifests)
            return sorted({name for name in names if is_tag(name)})

    def size_of(self, digest: Digest) -> int:
        """Return a blob's size in bytes."""
        with self.translated(f"find blob {digest}"):
            status = self.path_of(digest).stat()
            if status is None:
                raise NotFoundError(f"{self.name}: no blob {digest}")
            return status.st_size

    def open(self, digest: Digest) -> LayoutFile:
        """Open a blob; the caller closes it."""
        with self.translated(f"open blob {digest}"):
            try:
                descriptor = self.path_of(digest).open()
            except FileNotFoundError:
                raise NotFoundError(f"{self.name}: no blob {digest}") from None
            return LayoutFile(descriptor, partial(self.translated, f"read blob {digest}"))

    def store_blob(self, digest: Digest, source: bytes | Path, stop: Event) -> None:
        """Write a blob from bytes or a file, unless it is there with the same size."""
        with self.translated(f"write blob {digest}"):
            size = source.stat().st_size if isinstance(source, Path) else len(source)
            there = self.path_of(digest).stat()
            if there is None or there.st_size != size or not _touch(self.path_of(digest)):
                write_file(self.path_of(digest), self._checked(digest, source, stop), self._root)

    def store_manifest(self, tag_or_digest: str, content: bytes, media_type: str, stop: Event) -> Digest:
        """Write a manifest or image index, and point the tag at it if one is given."""
        with self.translated(f"write manifest {tag_or_digest}"):
            descriptor = Descriptor(parse_media_type(content, media_type), Digest.of(content), len(content))
            target = parse_tag_or_digest(tag_or_digest)
            if isinstance(target, Digest):
                target.check(content)
            self.store_blob(descriptor.digest, content, stop)
            self.blobs.sync()  # for all blobs at once: what the index names must survive a power cut
            with self.lock(stop):
                self._check_blobs(content, descriptor.media_type)
                if isinstance(target, str):
                    self.write_index(_with_tag(self.read_index(), target, descriptor))
            return descriptor.digest

    @contextmanager
    def lock(self, stop: Event) -> Iterator[None]:
        """Exclude others that write ``index.json``, push manifests or remove files."""
        with locked(self._root / _LOCK_FILE, self._lock_seconds, stop):
            yield

    def _check_blobs(self, content: bytes, media_type: str) -> None:
        """Refuse a manifest with missing blobs, as registries do: its writer sends them again."""
        blobs = find_references(content, media_type).blobs if media_type in MANIFESTS else ()
        for blob in blobs:
            if self.path_of(blob).stat() is None:
                raise RegistryError(
                    f"{self.name}: cannot write manifest: its blob {blob} is not there; push it first",
                    code="MANIFEST_BLOB_UNKNOWN",
                )

    def _find(self, tag_or_digest: str) -> tuple[Digest, str]:
        """Return the digest, and the media type, empty if none is stated."""
        target = parse_tag_or_digest(tag_or_digest)
        if isinstance(target, Digest):
            return target, ""
        for each in self.read_index().manifests:
            if each.annotations.get(ANNOTATION_REF_NAME) == target:
                return each.digest, each.media_type
        raise NotFoundError(f"{self.name}: no tag {target}")

    def _size_of_manifest(self, tag_or_digest: str, digest: Digest) -> int:
        status = self.path_of(digest).stat()
        if status is None and tag_or_digest == str(digest):
            raise NotFoundError(f"{self.name}: no manifest {digest}")
        if status is None:  # not NotFoundError: damage must not look like an empty repository
            raise RegistryError(
                f"{self.name} is damaged: tag {tag_or_digest} points at {digest}, which is missing"
            )
        return status.st_size

    def read_index(self) -> ImageIndex:
        """Read ``index.json``; NotFoundError if there is no layout."""
        has_version = self._check_version()
        try:
            index = ImageIndex.parse((self._root / _INDEX_FILE).read_bytes(MAX_MANIFEST_BYTES))
        except FileNotFoundError:
            if has_version:
                raise RegistryError(
                    f"{self.name} is damaged: {_INDEX_FILE} is missing; restore it, or use a new folder"
                ) from None
            raise NotFoundError(f"{self.name}: there is no OCI layout yet") from None
        except FormatError as error:
            raise RegistryError(
                f"{self.name} is damaged: {_INDEX_FILE}: {error}; restore it, or use a new folder"
            ) from error
        if not has_version and not self._check_version():  # it may have been created since
            if not index.manifests:
                raise NotFoundError(f"{self.name}: an OCI layout is still being created there")
            raise RegistryError(
                f"{self.name} is damaged: {_VERSION_FILE} is missing;"
                f" restore it: {_VERSION_FILE_CONTENT.decode()}"
            )
        return index

    def _check_version(self) -> bool:
        """Tell whether the file that marks a folder as a layout is there; FormatError if it is another."""
        try:
            content = (self._root / _VERSION_FILE).read_bytes(_MAX_VERSION_FILE_BYTES)
        except FileNotFoundError:
            return False
        version = parse_document(content, _VERSION_FILE, _MAX_VERSION_FILE_BYTES).get("imageLayoutVersion")
        if version != _VERSION:
            raise FormatError(f"{_VERSION_FILE}: only version {_VERSION} is supported, got {clip(version)}")
        return True

    def write_index(self, index: ImageIndex) -> None:
        """Replace ``index.json``; the caller has held the lock since it was read."""
        content = index.render()
        if len(content) > MAX_MANIFEST_BYTES:
            raise RegistryError(
                f"{self.name}: {_INDEX_FILE} would exceed {MAX_MANIFEST_BYTES} bytes; remove tags first"
            )
        write_file(self._root / _INDEX_FILE, [content], self._root)
        self._root.sync()

    def path_of(self, digest: Digest) -> RootedPath:
        """Return the file that holds a blob or manifest."""
        return self.blobs / digest.hex

    def _checked(self, digest: Digest, source: bytes | Path, stop: Event) -> Iterator[bytes]:
        """Yield the content; raises DigestError after its end if it does not match the digest."""
        hasher = hashlib.sha256()
        for piece in _pieces(source):
            if stop.is_set():
                raise RegistryError(f"{self.name}: blob {digest} was abandoned")
            hasher.update(piece)
            yield piece
        if hasher.hexdigest() != digest.hex:
            raise DigestError(f"the bytes given have digest sha256:{hasher.hexdigest()}")

    @contextmanager
    def translated(self, action: str) -> Iterator[None]:
        """Turn foreign errors into RegistryError: what could not be done, where, and why."""
        try:
            yield
        except (WrongKindError, FormatError, DigestError) as error:
            raise RegistryError(f"{self.name}: cannot {action}: {error}") from error
        except OSError as error:
            path = f" ({error.filename})" if error.filename else ""
            raise RegistryError(f"{self.name}: cannot {action}: {error.strerror or error}{path}") from error


def _with_tag(index: ImageIndex, tag: str, target: Descriptor) -> ImageIndex:
    """Point a tag at a manifest, and keep everything else."""
    others = [each for each in index.manifests if each.annotations.get(ANNOTATION_REF_NAME) != tag]
    replaced = [each for each in index.manifests if each.annotations.get(ANNOTATION_REF_NAME) == tag]
    annotations = {ANNOTATION_REF_NAME: tag}
    for each in replaced:
        if _ANNOTATION_CONTAINERD_NAME in each.annotations:
            annotations[_ANNOTATION_CONTAINERD_NAME] = each.annotations[_ANNOTATION_CONTAINERD_NAME]
    place = index.manifests.index(replaced[0]) if replaced else len(others)
    others.insert(place, replace(target, annotations=annotations))
    return replace(index, manifests=tuple(others))


def _touch(path: RootedPath) -> bool:
    """Make a file young, and tell whether it is still there."""
    try:
        path.touch()
    except FileNotFoundError:
        return False
    except PermissionError:
        pass  # another user's file keeps its age
    return True


def _pieces(source: bytes | Path) -> Iterator[bytes]:
    if not isinstance(source, Path):
        yield source
        return
    with source.open("rb") as file:
        while piece := file.read(_COPY_BYTES):
            yield piece


@dataclass(frozen=True, slots=True)
class References:
    """What one document names."""

    # Of a manifest: config and layers, except the empty config: it is two bytes, every manifest names it,
    # and a layout keeps it for good.
    blobs: frozenset[Digest]
    manifests: frozenset[Digest]  # the manifests and image indexes that an image index lists


def find_references(content: bytes, media_type: str) -> References:
    """Read what a manifest or image index of one of our types names; FormatError if it is none."""
    if media_type in MANIFESTS:
        manifest = Manifest.parse(content)
        named = {each.digest for each in (manifest.config, *manifest.layers)}
        return References(frozenset(named - {EMPTY_CONFIG.digest}), frozenset())
    listed = ImageIndex.parse(content).manifests
    documents = {each.digest for each in listed if each.media_type in (*MANIFESTS, *IMAGE_INDEXES)}
    return References(frozenset({each.digest for each in listed} - documents), frozenset(documents))
