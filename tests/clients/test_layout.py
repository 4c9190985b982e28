"""An OCI image layout folder as a repository of manifests and tags."""

import asyncio
import fcntl
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import ImageIndex, Manifest
from tests.clients.layout_story import CONTENT, DIGEST, LARGE, files_of, manifest, push
from tests.clients.registry_helper import read
from tests.support.programs import require_program
from tests.support.skopeo import skopeo_copy


async def _assert_all_missing(layout: Repository, tag_or_digests: Sequence[str], blob: Digest) -> None:
    for reading in (
        *(layout.resolve(each) for each in tag_or_digests),
        *(layout.get_manifest(each) for each in tag_or_digests),
        layout.stat_blob(blob),
        read(layout, blob),
    ):
        with pytest.raises(NotFoundError):
            await reading


async def test_missing_things(layout: Repository, root: Path) -> None:
    """No folder, or an empty one, is no repository; reading makes none; one says what it lacks."""
    for _ in range(2):
        await _assert_all_missing(layout, ["tag"], DIGEST)
        with pytest.raises(NotFoundError):
            await layout.list_tags()
        assert not list(root.parent.rglob("*/*"))
        (root / "empty").mkdir(parents=True, exist_ok=True)
        (root / "empty").rmdir()
    await layout.push_blob(DIGEST, CONTENT)
    assert await layout.list_tags() == []
    await _assert_all_missing(layout, ["tag", str(Digest("ab" * 32))], Digest("ab" * 32))


async def test_manifests(layout: Repository, root: Path) -> None:
    """A manifest is found by its tag and by its digest; the tag is one entry of index.json."""
    content = manifest("one")
    digest = await push(layout, "one", content)
    assert digest == Digest.of(content)
    for tag_or_digest in ("one", str(digest)):
        stored = await layout.get_manifest(tag_or_digest)
        assert (stored.content, stored.media_type, stored.digest) == (
            content,
            media_type.IMAGE_MANIFEST,
            digest,
        )
        assert await layout.resolve(tag_or_digest) == digest
    assert await layout.list_tags() == ["one"]
    assert json.loads((root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads((root / "index.json").read_bytes())["manifests"] == [
        {
            "mediaType": media_type.IMAGE_MANIFEST,
            "digest": str(digest),
            "size": len(content),
            "annotations": {"org.opencontainers.image.ref.name": "one"},
        }
    ]
    assert files_of(root) == {"oci-layout", "index.json", f"blobs/sha256/{digest.hex}"}
    await layout.close()


async def test_manifest_without_a_tag(layout: Repository) -> None:
    """What is pushed by its digest is found by that alone, no other; an index keeps its media type."""
    content = manifest("one")
    digest = await push(layout, str(Digest.of(content)), content)
    assert (await layout.get_manifest(str(digest))).content == content
    assert await layout.list_tags() == []
    with pytest.raises(RegistryError, match="have digest"):
        await push(layout, str(digest), manifest("two"))
    index = await layout.push_manifest("cache-index", ImageIndex(()).render(), media_type.IMAGE_INDEX)
    for tag_or_digest in ("cache-index", str(index)):
        assert (await layout.get_manifest(tag_or_digest)).media_type == media_type.IMAGE_INDEX


@pytest.mark.parametrize(
    ("tag", "content", "kind"),
    [
        ("tag", b"no JSON", media_type.IMAGE_MANIFEST),
        ("tag", manifest(""), media_type.IMAGE_INDEX),
        ("tag", manifest("x" * 2**22), media_type.IMAGE_MANIFEST),
        ("bad tag", manifest(""), media_type.IMAGE_MANIFEST),
        ("../tag", manifest(""), media_type.IMAGE_MANIFEST),
        ("sha256:../../x", manifest(""), media_type.IMAGE_MANIFEST),
    ],
)
async def test_refused_manifest(layout: Repository, root: Path, tag: str, content: bytes, kind: str) -> None:
    """What could not be read back is not written."""
    with pytest.raises(RegistryError, match=r"\Aoci:/[^\n]*cannot write manifest"):
        await layout.push_manifest(tag, content, kind)
    assert files_of(root) == {"oci-layout", "index.json"}


async def test_a_blob_is_no_manifest(layout: Repository) -> None:
    """Layouts keep blobs and manifests in one folder; what a manifest is, its content tells."""
    await layout.push_blob(DIGEST, CONTENT)
    await layout.push_blob(Digest.of(bytes(2**22 + 1)), bytes(2**22 + 1))
    for digest in (DIGEST, Digest.of(bytes(2**22 + 1))):
        with pytest.raises(RegistryError, match="manifest"):
            await layout.get_manifest(str(digest))


async def test_tags_move_alone(layout: Repository, root: Path) -> None:
    """Moving a tag changes its own entry, in its place; everything else stays, however strange."""
    first = await push(layout, "moving", manifest("one"))
    containerd = {
        "org.opencontainers.image.ref.name": "other",
        "io.containerd.image.name": "docker.io/library/other:1",
    }
    index = json.loads((root / "index.json").read_bytes())
    moving = index["manifests"][0]
    moving["annotations"]["io.containerd.image.name"] = "docker.io/library/moving:1"
    moving["annotations"][media_type.ANNOTATION_CREATED] = "2026-11-21T03:15:00Z"
    moving["platform"] = {"os": "linux"}
    other = {**moving, "annotations": containerd, "x-future": [1, None]}
    nameless = {"mediaType": "text/plain", "digest": str(DIGEST), "size": 3}
    odd = {**moving, "annotations": {"org.opencontainers.image.ref.name": "docker.io/library/x:1"}}
    index |= {"annotations": {"a": "b"}, "x-future": {"c": 1.5}}
    index["manifests"] = [other, moving, nameless, odd]
    (root / "index.json").write_text(json.dumps(index))

    second = await push(layout, "moving", manifest("two"))
    moved = {
        **{name: value for name, value in moving.items() if name != "platform"},
        "digest": str(second),
        "annotations": {
            "org.opencontainers.image.ref.name": "moving",
            "io.containerd.image.name": "docker.io/library/moving:1",
        },
    }
    index["manifests"][1] = moved
    assert json.loads((root / "index.json").read_bytes()) == index
    assert await layout.resolve("moving") == second
    assert await layout.resolve("other") == first
    assert await layout.list_tags() == ["moving", "other"]
    assert (await layout.get_manifest(str(first))).content == manifest("one")


async def test_tasks_that_tag_at_once(layout: Repository, root: Path) -> None:
    """Within one program, through one object or several, no tag is lost either."""
    others = [Layout(root) for _ in range(5)]
    tags = [f"tag-{number}" for number in range(30)]
    await asyncio.gather(
        *(push([layout, *others][number % 6], tag, manifest(tag)) for number, tag in enumerate(tags))
    )
    assert await layout.list_tags() == sorted(tags)


async def test_lock_held_by_another(root: Path) -> None:
    """A tag waits for other writers without stopping anything else, but not for ever."""
    layout, patient = Layout(root, lock_seconds=0.05), Layout(root)
    await push(layout, "one", manifest("one"))
    await push(patient, "one", manifest("one"))
    with (root / ".nixcache-lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RegistryError, match="another program held this lock") as caught:
            await push(layout, "two", manifest("two"))
        assert caught.value.is_temporary
        assert await layout.list_tags() == ["one"]

        waiting = [asyncio.create_task(push(patient, f"more-{n}", manifest("two"))) for n in range(40)]
        assert await layout.list_tags() == ["one"]
        assert await read(layout, Digest.of(manifest("one"))) == manifest("one")
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)
    assert len(await layout.list_tags()) == 41


async def test_cancelled_writers(layout: Repository, root: Path) -> None:
    """A writer that is cancelled leaves a whole layout and nothing unfinished."""
    await push(layout, "one", manifest("one"))
    for steps in range(6):
        content = LARGE * 8 + bytes([steps])
        task = asyncio.create_task(layout.push_blob(Digest.of(content), content))
        tagging = asyncio.create_task(push(layout, f"more-{steps}", manifest(f"more-{steps}")))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        tagging.cancel()
        await asyncio.gather(task, tagging, return_exceptions=True)
    await push(layout, "last", manifest("last"))
    assert {"one", "last"} <= set(await layout.list_tags())
    await asyncio.get_running_loop().shutdown_default_executor()
    for name in files_of(root):
        if name.startswith("blobs/"):
            Digest(Path(name).name).check((root / name).read_bytes())
    assert not [name for name in files_of(root) if "unfinished" in name]


def test_one_event_loop_after_another(tmp_path: Path) -> None:
    """A layout works in one event loop after another, as command lines use it."""
    layout = Layout(tmp_path)
    asyncio.run(push(layout, "tag", manifest("one")))
    assert asyncio.run(layout.get_manifest("tag")).content == manifest("one")


_TABLE = b"table"
_SEGMENT = Manifest(
    media_type.SEGMENT, EMPTY_CONFIG, (Descriptor(media_type.TABLE, Digest.of(_TABLE), len(_TABLE)),)
).render()
_LISTED = Descriptor(media_type.IMAGE_MANIFEST, Digest.of(_SEGMENT), len(_SEGMENT), {"a": "b"})
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


@pytest.mark.needs("skopeo")
async def test_skopeo_reads_ours(tmp_path: Path) -> None:
    """The bytes under a tag are the same to everyone, before and after the tag has moved."""
    layout = await _make_cache(tmp_path)
    assert _inspect_raw(tmp_path, "cache-index") == _INDEX
    assert _inspect_raw(tmp_path, "segment-1") == _SEGMENT
    await layout.push_manifest("cache-index", ImageIndex(()).render(), media_type.IMAGE_INDEX)
    assert _inspect_raw(tmp_path, "cache-index") == ImageIndex(()).render()
    assert _inspect_raw(tmp_path, "segment-1") == _SEGMENT


@pytest.mark.needs("skopeo")
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


@pytest.mark.needs("skopeo")
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
