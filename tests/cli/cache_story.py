"""A cache in an OCI layout for the verbs that look into one, with what no publisher writes in it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nixcache_oci.cache.cache_index import INDEX_TAG
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.segment import Segment, build_manifest
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import Repository
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest


def write_layout(folder: Path, job: Callable[[Repository], Awaitable[object]]) -> None:
    """Do something with the cache, as a publisher would."""

    async def run() -> None:
        repository = Layout(folder)
        try:
            await job(repository)
        finally:
            await repository.close()

    asyncio.run(run())


def write_empty_cache(folder: Path) -> None:
    """Make a cache that lists nothing; without an index there would be none."""
    write_layout(folder, lambda cache: list_segments(cache, []))


async def publish_text(repository: Repository, text: str, created: datetime) -> Segment:
    """Publish a table as it is, malformed or not; only the segment's tag knows it."""
    content = zstandard.ZstdCompressor().compress(text.encode())
    table = Descriptor(media_type.TABLE, Digest.of(content), len(content))
    await repository.push_blob(table.digest, content)
    manifest = build_manifest(table, [], created=created, paths=1, source=None)
    segment = Segment.from_manifest(manifest)
    await repository.push_manifest(str(segment.tag), manifest, media_type.IMAGE_MANIFEST)
    return segment


async def condemn(repository: Repository, segment: Segment, time: str) -> None:
    """Mark a segment that the index lists, as gc does."""
    stored = await repository.get_manifest(INDEX_TAG)
    document = json.loads(stored.content)
    for descriptor in document["manifests"]:
        if descriptor["digest"] == str(segment.manifest):
            descriptor["annotations"][media_type.ANNOTATION_CONDEMNED] = time
    await repository.push_manifest(INDEX_TAG, json.dumps(document).encode(), stored.media_type)


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = DONE) -> dict[str, Any]:
    """Run a verb with ``--json``, and parse what it prints."""
    assert main([*arguments, "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
