"""Removing manifests and blobs from an OCI image layout."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_sweep import LayoutRemover
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import ImageIndex, Manifest
from tests.clients.layout_story import killed_at, start
from tests.support.skopeo import skopeo_copy

_DAY = 24 * 3600
_SECONDS = 60

_PUSHING = """
import asyncio, sys
from pathlib import Path
from tests.clients.test_removal_layout import Story
async def main():
    story = Story(Path(sys.argv[1]))
    for number in range(20):
        await story.add_segment(f"new-{number}", b"own %d" % number, b"new")
asyncio.run(main())
"""
# It may also be killed when a file is removed.
_REMOVING = """
unlink = os.unlink
os.unlink = lambda *arguments, **named: kill_or(unlink, *arguments, **named)
from nixcache_oci.clients.layout_sweep import LayoutRemover
from nixcache_oci.oci.digest import Digest
job = LayoutRemover(Path(sys.argv[2])).remove(Digest(sys.argv[3]))
"""


class Story:
    """A layout, and what is done to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root)
        self.remover = LayoutRemover(root)

    async def add_segment(self, tag: str | None, *blobs: bytes) -> Digest:
        await self.layout.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
        for blob in blobs:
            await self.layout.push_blob(Digest.of(blob), blob)
        return await self.push_segment(tag, *blobs)

    async def push_segment(self, tag: str | None, *blobs: bytes) -> Digest:
        content = segment(*blobs)
        return await self.layout.push_manifest(
            tag or str(Digest.of(content)), content, media_type.IMAGE_MANIFEST
        )

    async def write_index(self, *segments: Digest, text: str = "") -> Digest:
        listed = tuple(
            Descriptor(media_type.IMAGE_MANIFEST, each, self.path(each).stat().st_size) for each in segments
        )
        content = ImageIndex(listed, {"text": text}).render()
        return await self.layout.push_manifest("cache-index", content, media_type.IMAGE_INDEX)

    def age(self, *names: Digest | bytes, seconds: float = 2 * _DAY) -> None:
        """Make files old; all of them where none is named."""
        paths = [self.path(each) for each in names] or list((self.root / "blobs/sha256").iterdir())
        for path in paths:
            os.utime(path, (time.time() - seconds,) * 2)

    def path(self, name: Digest | bytes) -> Path:
        digest = Digest.of(name) if isinstance(name, bytes) else name
        return self.root / "blobs/sha256" / digest.hex

    def files(self) -> set[str]:
        return {path.name for path in (self.root / "blobs/sha256").iterdir()}

    def holds(self, name: Digest | bytes) -> bool:
        return self.path(name).exists()


def segment(*blobs: bytes) -> bytes:
    layers = tuple(Descriptor(media_type.NAR_ZSTD, Digest.of(blob), len(blob)) for blob in blobs)
    return Manifest(media_type.SEGMENT, EMPTY_CONFIG, layers).render()


@pytest.fixture
def story(tmp_path: Path) -> Story:
    return Story(tmp_path / "layout")


async def test_removed_before(story: Story, tmp_path: Path) -> None:
    """What is not there is no error, and no layout is made by looking for it."""
    await story.remover.remove(Digest.of(b"nothing"))
    assert await story.remover.untagged() == []
    assert not story.root.exists()
    gone = await story.add_segment("one", b"own")
    await story.remover.remove(gone)
    await story.remover.remove(gone)
    (tmp_path / "empty").mkdir()
    await LayoutRemover(tmp_path / "empty").remove(gone)
    assert list((tmp_path / "empty").iterdir()) == []


async def test_the_young_stays(story: Story) -> None:
    """A publisher pushes blobs before the manifest that names them: these must not go meanwhile.

    A copier pushes manifests by digest, and the image index that lists them, with its tag, comes last.
    """
    gone = await story.add_segment("one", b"own", b"pushed again")
    child = await story.add_segment(None, b"old blob of the child")
    story.age()
    story.age(child, seconds=0)
    await story.layout.push_blob(Digest.of(b"fresh"), b"fresh")
    await story.layout.push_blob(Digest.of(b"pushed again"), b"pushed again")
    await story.remover.remove(gone)
    await story.push_segment("three", b"fresh", b"pushed again")
    await story.write_index(child)
    assert story.holds(b"old blob of the child")
    assert not story.holds(b"own")


async def test_a_manifest_that_relies_on_a_swept_blob_is_refused(story: Story) -> None:
    """A publisher who found a blob there that goes before it is named learns that it has to send it again."""
    gone = await story.add_segment("one", b"own")
    story.age()
    assert await story.layout.stat_blob(Digest.of(b"own")) == 3
    await story.remover.remove(gone)
    for tag in ("again", None):
        with pytest.raises(RegistryError, match="push it first") as raised:
            await story.push_segment(tag, b"own", b"own")
        assert raised.value.code == "MANIFEST_BLOB_UNKNOWN"
    assert await story.layout.list_tags() == []
    await story.add_segment("again", b"own")


async def test_leftovers_go(story: Story) -> None:
    """What crashed publishers left, and former versions of the index, go with the next manifest."""
    gone = await story.add_segment("one", b"own")
    kept = await story.add_segment("two", b"other")
    await story.write_index(gone, kept)
    current = await story.write_index(kept)
    await story.layout.push_blob(Digest.of(b"left"), b"left")
    (story.root / "blobs/sha256/README").write_text("not a blob")
    story.age()
    await story.remover.remove(gone)
    left = (current, kept, Digest.of(b"other"), EMPTY_CONFIG.digest)
    assert story.files() == {"README", *(digest.hex for digest in left)}


async def test_what_the_index_lists_is_refused(story: Story) -> None:
    """A writer may have listed it again: it stays, with all it names. A stale index stops no other."""
    collected = await story.add_segment(None, b"collected")
    listed = await story.add_segment(None, b"listed")
    gone = await story.add_segment("one", b"own")
    await story.write_index(collected, listed)
    story.age()
    before = story.files()
    with pytest.raises(RegistryError, match="unlist it first"):
        await story.remover.remove(listed)
    assert story.files() == before
    story.path(collected).unlink()
    await story.remover.remove(gone)
    assert not story.holds(b"own")
    assert story.holds(b"listed")


@pytest.mark.parametrize("damage", ["missing", "not JSON", "wrong bytes", "bad index.json"])
async def test_damage_stops_it(story: Story, damage: str) -> None:
    """What cannot be read may name anything: nothing is removed then, and the reason is told."""
    gone = await story.add_segment("one", b"own")
    kept = await story.add_segment("two", b"other")
    story.age()
    if damage == "missing":
        story.path(kept).unlink()
    elif damage == "bad index.json":
        (story.root / "index.json").write_text("{")
    else:
        story.path(kept).write_bytes(b"{" if damage == "not JSON" else segment(b"else"))
    index, before = (story.root / "index.json").read_bytes(), story.files()
    with pytest.raises(RegistryError, match=r"\Aoci:/[^\n]*\Z"):
        await story.remover.remove(gone)
    assert ((story.root / "index.json").read_bytes(), story.files()) == (index, before)


async def test_other_programs_entries_stay(story: Story) -> None:
    """An index.json may name what is no manifest, in ways that only others understand."""
    gone = await story.add_segment("one", b"own")
    await story.layout.push_blob(Digest.of(b"text"), b"text")
    index = json.loads((story.root / "index.json").read_bytes())
    other = {"mediaType": "text/plain", "digest": str(Digest.of(b"text")), "size": 4, "x-future": [1]}
    index["manifests"].append(other)
    (story.root / "index.json").write_text(json.dumps(index))
    story.age()
    await story.remover.remove(gone)
    assert json.loads((story.root / "index.json").read_bytes())["manifests"] == [other]
    assert story.holds(b"text")


async def test_untagged(story: Story) -> None:
    """What other programs wrote without a tag is told, with its age; what also has a tag is not."""
    await story.add_segment("one", b"own")
    nameless = await story.add_segment(None, b"other")
    index = json.loads((story.root / "index.json").read_bytes())
    (entry,) = index["manifests"]
    index["manifests"] += [{**entry, "annotations": {}}] + 2 * [
        {**entry, "annotations": {}, "digest": str(nameless)}
    ]
    (story.root / "index.json").write_text(json.dumps(index))
    story.age()
    (version,) = await story.remover.untagged()
    assert version.digest == nameless
    assert abs(time.time() - 2 * _DAY - version.created.timestamp()) < 60
    await story.remover.remove(nameless)
    assert await story.remover.untagged() == []
    assert not story.holds(b"other")


async def test_killed_while_it_removes(tmp_path: Path) -> None:
    """Whenever it dies, what is kept is whole, what goes has its tag or not, and the next run ends it."""
    seen = []
    for step in range(1, 20):
        story = Story(tmp_path / str(step))
        gone = await story.add_segment("gone", b"own", b"shared")
        kept = await story.add_segment("kept", b"shared")
        story.age()
        was_killed = killed_at(step, _REMOVING, story.root, gone.hex)
        tags = await story.layout.list_tags()
        seen.append("gone" in tags)
        if "gone" in tags:
            assert await story.layout.resolve("gone") == gone
            assert story.holds(b"own")
        await story.remover.remove(gone)
        assert await story.layout.list_tags() == ["kept"]
        assert story.files() == {kept.hex, Digest.of(b"shared").hex, EMPTY_CONFIG.digest.hex}
        if not was_killed:
            break
    assert seen[0]
    assert not seen[-1]
    assert seen == sorted(seen, reverse=True)
    assert 5 <= len(seen) < 15


async def test_programs_take_turns(story: Story) -> None:
    """Tags that others push while manifests are removed are all there, and whole."""
    gone = [await story.add_segment(f"gone-{number}", b"own %d" % number) for number in range(20)]
    story.age()
    process = start(_PUSHING, story.root)
    for each in gone:
        await story.remover.remove(each)
    _, errors = process.communicate(timeout=_SECONDS)
    # It may have lost an old blob between its look and its manifest; then it was told, and nothing is listed.
    assert process.returncode == 0 or b"push it first" in errors
    tags = await story.layout.list_tags()
    assert all(tag.startswith("new-") for tag in tags)
    for tag in tags:
        for layer in Manifest.parse((await story.layout.get_manifest(tag)).content).layers:
            assert await story.layout.stat_blob(layer.digest) == layer.size


@pytest.mark.needs("skopeo")
async def test_a_manifest_goes_with_what_is_its_own(story: Story, tmp_path: Path) -> None:
    """With its tags and blobs; what another names as well stays, and skopeo copies all that is left."""
    gone = await story.add_segment("one", b"own", b"shared")
    await story.push_segment("alias", b"own", b"shared")
    kept = await story.add_segment("two", b"shared", b"other")
    current = await story.write_index(kept)
    story.age()
    await story.remover.remove(gone)
    assert await story.layout.list_tags() == ["cache-index", "two"]
    blobs = {Digest.of(blob).hex for blob in (b"shared", b"other", EMPTY_CONFIG_CONTENT)}
    assert story.files() == {current.hex, kept.hex} | blobs
    with pytest.raises(NotFoundError):
        await story.layout.get_manifest(str(gone))
    await story.remover.close()
    skopeo_copy(f"oci:{story.root}:cache-index", f"oci:{tmp_path}/copy:cache-index", "--all")
    assert {path.name for path in (tmp_path / "copy/blobs/sha256").iterdir()} == story.files()


async def test_a_young_file_is_read_once(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many manifests go: an embedded cache has thousands of blobs, most of them young."""
    gone = [await story.add_segment(f"gone-{number}", b"own %d" % number) for number in range(5)]
    await story.add_segment("kept", b"kept")
    for number in range(20):
        await story.layout.push_blob(Digest.of(b"%d" % number), b"%d" % number)
    reads: Counter[str] = Counter()
    read_bytes = RootedPath.read_bytes

    def read(path: RootedPath, limit: int) -> bytes:
        reads[path.name] += 1
        return read_bytes(path, limit)

    monkeypatch.setattr(RootedPath, "read_bytes", read)
    for manifest in gone:
        await story.remover.remove(manifest)
    assert reads[Digest.of(b"7").hex] == 1
    del reads["index.json"], reads["oci-layout"]
    assert max(reads.values()) == 1
