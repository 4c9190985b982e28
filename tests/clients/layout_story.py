"""What tests of layouts tell their stories with."""

from pathlib import Path

from nixcache_oci.clients.repository import Repository
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

CONTENT = b"content of a blob"
DIGEST = Digest.of(CONTENT)
LARGE = bytes(range(256)) * 5000  # 1.28 MB: several pieces, both when written and when read


def manifest(text: str) -> bytes:
    return Manifest(media_type.SEGMENT, EMPTY_CONFIG, (), {"text": text}).render()


async def push(repository: Repository, tag_or_digest: str, content: bytes) -> Digest:
    return await repository.push_manifest(tag_or_digest, content, media_type.IMAGE_MANIFEST)


async def read(repository: Repository, digest: Digest, start: int = 0, end: int | None = None) -> bytes:
    async with repository.open_blob(digest, start, end) as blob:
        return b"".join([piece async for piece in blob.chunks])


def files_of(root: Path) -> set[str]:
    """All files but the lock."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)) for path in paths} - {".nixcache-lock"}
