"""Layouts between this program and skopeo, in both directions."""

import json
import subprocess
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import ImageIndex, Manifest
from tests.support.programs import require_program
from tests.support.skopeo import skopeo_copy

pytestmark = pytest.mark.needs("skopeo")

_TABLE = b"table"
_DESCRIPTOR = Descriptor(media_type.TABLE, Digest.of(_TABLE), len(_TABLE))
_SEGMENT = Manifest(
    media_type.SEGMENT, EMPTY_CONFIG, (_DESCRIPTOR,), {media_type.ANNOTATION_PATHS: "1"}
).render()
_LISTED = Descriptor(
    media_type.IMAGE_MANIFEST,
    Digest.of(_SEGMENT),
    len(_SEGMENT),
    {media_type.ANNOTATION_TABLE: str(Digest.of(_TABLE))},
)
_INDEX = ImageIndex((_LISTED,), {media_type.ANNOTATION_FORMAT: "2"}).render()


async def _make_cache(root: Path) -> Layout:
    layout = Layout(root)
    await layout.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
    await layout.push_blob(Digest.of(_TABLE), _TABLE)
    await layout.push_manifest("segment-1", _SEGMENT, media_type.IMAGE_MANIFEST)
    await layout.push_manifest("cache-index", _INDEX, media_type.IMAGE_INDEX)
    return layout


def _inspect_raw(root: Path, tag: str) -> bytes:
    command = [require_program("skopeo"), "inspect", "--raw", f"oci:{root}:{tag}"]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


async def test_skopeo_reads_ours(tmp_path: Path) -> None:
    """The bytes under a tag are the same to everyone, before and after the tag has moved."""
    layout = await _make_cache(tmp_path)
    assert _inspect_raw(tmp_path, "cache-index") == _INDEX
    assert _inspect_raw(tmp_path, "segment-1") == _SEGMENT
    await layout.push_manifest("cache-index", ImageIndex(()).render(), media_type.IMAGE_INDEX)
    assert _inspect_raw(tmp_path, "cache-index") == ImageIndex(()).render()
    assert _inspect_raw(tmp_path, "segment-1") == _SEGMENT


async def test_we_read_skopeos(tmp_path: Path) -> None:
    """One command of an independent program mirrors a cache, and the copy is as good as the original."""
    await _make_cache(tmp_path / "a")
    skopeo_copy(f"oci:{tmp_path / 'a'}:cache-index", f"oci:{tmp_path / 'b'}:cache-index", "--all")
    copy = Layout(tmp_path / "b")
    assert await copy.list_tags() == ["cache-index"]
    stored = await copy.get_manifest("cache-index")
    assert (stored.content, stored.media_type) == (_INDEX, media_type.IMAGE_INDEX)
    assert (await copy.get_manifest(str(Digest.of(_SEGMENT)))).content == _SEGMENT
    async with copy.open_blob(Digest.of(_TABLE)) as blob:
        assert [piece async for piece in blob.chunks] == [_TABLE]


async def test_taking_turns(tmp_path: Path) -> None:
    """Tags of either program survive the other's writing."""
    layout = await _make_cache(tmp_path / "a")
    skopeo_copy(f"oci:{tmp_path / 'a'}:segment-1", f"oci:{tmp_path / 'b'}:theirs")
    copy = Layout(tmp_path / "b")
    theirs = json.loads((tmp_path / "b/index.json").read_bytes())["manifests"]
    await copy.push_manifest("ours", ImageIndex(()).render(), media_type.IMAGE_INDEX)
    assert json.loads((tmp_path / "b/index.json").read_bytes())["manifests"][:1] == theirs
    skopeo_copy(f"oci:{tmp_path / 'a'}:cache-index", f"oci:{tmp_path / 'b'}:cache-index", "--all")
    assert await copy.list_tags() == ["cache-index", "ours", "theirs"]
    assert (await copy.get_manifest("theirs")).content == _SEGMENT
    assert (await copy.get_manifest("ours")).content == ImageIndex(()).render()
    assert await layout.list_tags() == ["cache-index", "segment-1"]
