"""Layouts that are damaged, or that the system keeps closed."""

import os
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_folder import LayoutFolder
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import NotFoundError, RegistryError
from tests.clients.layout_story import CONTENT, DIGEST, manifest, push


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("index.json", b"", "index.json: .*not a JSON document"),
        ("index.json", b"{}", "index.json: .*schemaVersion"),
        ("index.json", b"[]", "index.json: .*expected a JSON object"),
        ("index.json", b'{"schemaVersion":2}', "index.json: .*manifests: is missing"),
        ("index.json", b"[" * 100_000, "index.json: .*nested too deeply"),
        ("index.json", b" " * (2**22 + 1), "index.json: .*limit"),
        ("index.json", b'{"schemaVersion":2,"manifests":[{}]}', r"index.json: .*manifests\[0\]: mediaType"),
        ("index.json", None, "index.json is missing"),
        ("oci-layout", None, "oci-layout is missing"),
        ("oci-layout", b"", "oci-layout: not a JSON document"),
        ("oci-layout", b"{}", "only version 1.0.0 is supported, got None"),
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "only version 1.0.0 is supported, got '2.0.0'"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_damage(layout: Repository, root: Path, name: str, content: bytes | None, message: str) -> None:
    """Damage is one clear line, never mistaken for an empty repository, and never written over."""
    await push(layout, "tag", manifest("one"))
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(content)
    before = {path: path.read_bytes() for path in (root / "index.json", root / "oci-layout") if path.exists()}
    for attempt in (
        layout.list_tags(),
        layout.resolve("tag"),
        layout.get_manifest("other"),
        push(layout, "new", manifest("two")),
        push(Layout(root), "new", manifest("two")),
        Layout(root).push_blob(DIGEST, CONTENT),
    ):
        with pytest.raises(RegistryError, match=rf"\Aoci:/[^\n]*{message}[^\n]*\Z") as caught:
            await attempt
        assert not isinstance(caught.value, NotFoundError)
        assert not caught.value.is_temporary
    for path in (root / "index.json", root / "oci-layout"):
        assert (path.read_bytes() if path.exists() else None) == before.get(path)


async def test_a_manifest_is_what_its_digest_says(layout: Repository, root: Path) -> None:
    """Or an error; a tag that points at nothing is damage: as a missing one, it would be an empty cache."""
    digest = await push(layout, "cache-index", manifest("one"))
    (root / "blobs/sha256" / digest.hex).write_bytes(manifest("two"))
    for tag_or_digest in ("cache-index", str(digest)):
        with pytest.raises(RegistryError, match="have digest"):
            await layout.get_manifest(tag_or_digest)
    (root / "blobs/sha256" / digest.hex).unlink()
    for reading in (layout.resolve("cache-index"), layout.get_manifest("cache-index")):
        with pytest.raises(RegistryError, match="is damaged: tag cache-index points at") as caught:
            await reading
        assert not isinstance(caught.value, NotFoundError)


async def test_the_system_refuses(layout: Repository, root: Path) -> None:
    """What the system says, with the file's name, is passed on in one line."""
    (root.parent / "beside").mkdir(parents=True)
    (root.parent / root.name).write_bytes(b"a file where the folder should be")
    for attempt in (layout.list_tags(), layout.stat_blob(DIGEST), layout.push_blob(DIGEST, CONTENT)):
        with pytest.raises(RegistryError, match=rf"\Aoci:{root}: cannot [^\n]*\({root}[^\n]*\)\Z") as caught:
            await attempt
        assert not isinstance(caught.value, NotFoundError)


def _chmod(path: Path, mode: int) -> None:
    path.chmod(mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
async def test_no_permission(layout: Repository, root: Path) -> None:
    """A folder that may not be read is not an empty one."""
    await layout.push_blob(DIGEST, CONTENT)
    _chmod(root, 0)
    try:
        with pytest.raises(RegistryError, match="Permission denied") as caught:
            await layout.list_tags()
    finally:
        _chmod(root, 0o700)
    assert not isinstance(caught.value, NotFoundError)


async def test_reader_while_a_layout_is_made(
    layout: Repository, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layout that comes into being while it is read is there, or not yet there, but never damaged."""
    check = LayoutFolder._check_version
    for tags in ([], ["tag"]):
        await (push(layout, "tag", manifest("one")) if tags else layout.push_blob(DIGEST, CONTENT))
        looks = iter([False])  # at oci-layout just before a writer makes it
        monkeypatch.setattr(
            LayoutFolder, "_check_version", lambda self, looks=looks: next(looks, check(self))
        )
        assert LayoutFolder(root, 1).tags() == tags
