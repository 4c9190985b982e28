"""An OCI layout is somebody's folder: what is no file is refused by name, and links are not followed."""

import asyncio
import fcntl
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.layout_sweep import LayoutRemover
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.layout_story import CONTENT, DIGEST, manifest, push
from tests.clients.registry_helper import read
from tests.support.odd_files import LINKS, NO_FILES, NO_FOLDERS, put_in_place, state_of

MANIFEST = manifest("one")
OTHER = manifest("two")
MANIFEST_DIGEST = Digest.of(MANIFEST)
BLOBS: Final = "blobs/sha256"
_SECONDS: Final = 10.0

Job = Callable[[Path], Awaitable[object]]

READING_TAGS: Final[dict[str, Job]] = {
    "list tags": lambda root: Layout(root).list_tags(),
    "resolve": lambda root: Layout(root).resolve("tag"),
    "get manifest": lambda root: Layout(root).get_manifest("tag"),
    "list what has no tag": lambda root: LayoutRemover(root).untagged(),
}
WRITING: Final[dict[str, Job]] = {
    "push blob": lambda root: Layout(root).push_blob(DIGEST, CONTENT),
    "push manifest": lambda root: push(Layout(root), "other", OTHER),
    "remove": lambda root: LayoutRemover(root, min_age_seconds=0).remove(MANIFEST_DIGEST),
}
READING_BLOB: Final[dict[str, Job]] = {
    "stat": lambda root: Layout(root).stat_blob(DIGEST),
    "read": lambda root: read(Layout(root), DIGEST),
    "read a part": lambda root: read(Layout(root), DIGEST, 1, 2),
    "push again": lambda root: Layout(root).push_blob(DIGEST, CONTENT),
}
READING_MANIFEST: Final[dict[str, Job]] = {
    "resolve": lambda root: Layout(root).resolve("tag"),
    "get by tag": lambda root: Layout(root).get_manifest("tag"),
    "get by digest": lambda root: Layout(root).get_manifest(str(MANIFEST_DIGEST)),
    "push again": lambda root: push(Layout(root), "tag", MANIFEST),
}
PLACES: Final = {
    "index.json": (NO_FILES, {**READING_TAGS, **WRITING}),
    "oci-layout": (NO_FILES, {**READING_TAGS, **WRITING}),
    ".nixcache-lock": (NO_FILES, WRITING),
    "blobs": (NO_FOLDERS, {**READING_BLOB, **READING_MANIFEST, **WRITING}),
    BLOBS: (NO_FOLDERS, {**READING_BLOB, **READING_MANIFEST, **WRITING}),
    f"{BLOBS}/{DIGEST.hex}": (NO_FILES, READING_BLOB),
    f"{BLOBS}/{MANIFEST_DIGEST.hex}": (NO_FILES, READING_MANIFEST),
}


@pytest.fixture
async def root(tmp_path: Path) -> Path:
    root = tmp_path / "layout"
    await Layout(root).push_blob(DIGEST, CONTENT)
    await push(Layout(root), "tag", MANIFEST)
    return root


@pytest.mark.parametrize(
    ("place", "kind"), [(place, kind) for place, (kinds, _) in PLACES.items() for kind in kinds]
)
async def test_what_is_no_file_is_refused_by_name(root: Path, tmp_path: Path, place: str, kind: str) -> None:
    """At once, in one line, whatever is done; it is not taken for something missing, and stays as it is.

    A link is refused although it leads to the very file that was there, and nothing is made where it leads.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    named = put_in_place(kind, root / place, elsewhere)
    before = {path: state_of(path) for path in (root / place, *elsewhere.rglob("*"))}
    for job in PLACES[place][1].values():
        with pytest.raises(RegistryError, match=rf"\A[^\n]*{re.escape(named)}[^\n]*\Z") as caught:
            async with asyncio.timeout(_SECONDS):
                await job(root)
        assert not isinstance(caught.value, NotFoundError)
        assert not caught.value.is_temporary
    # Not even an access time: nothing of it was opened.
    after = {path: state_of(path) for path in (root / place, *elsewhere.rglob("*"))}
    assert after == before


@pytest.mark.parametrize("kind", LINKS)
async def test_links_of_old_unfinished_files_are_left_alone(root: Path, tmp_path: Path, kind: str) -> None:
    """What crashed writers left is removed; what a link of such a name leads to is not looked at."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    odd = root / ".nixcache-unfinished-0000"
    put_in_place(kind, odd, elsewhere)
    (root / ".nixcache-unfinished-1111").mkdir()
    for path in (odd, root / ".nixcache-unfinished-1111"):
        os.utime(path, (0, 0), follow_symlinks=False)
    await Layout(root).push_blob(DIGEST, CONTENT)
    assert odd.is_symlink()


async def test_a_link_in_place_of_an_unknown_blob_is_not_swept(root: Path, tmp_path: Path) -> None:
    """The sweep removes files of ours; a link that somebody put there is not one, nor what it leads to."""
    secret = tmp_path / "secret"
    secret.write_bytes(OTHER)
    link = root / BLOBS / Digest.of(OTHER).hex
    link.symlink_to(secret)
    await LayoutRemover(root, min_age_seconds=0).remove(MANIFEST_DIGEST)
    assert link.is_symlink()
    assert secret.read_bytes() == OTHER
    assert not (root / BLOBS / MANIFEST_DIGEST.hex).exists()


async def test_the_folder_itself_may_be_behind_links(root: Path, tmp_path: Path) -> None:
    """Its path is the user's own: a large cache may be on another disk."""
    (tmp_path / "first").symlink_to(tmp_path)
    (tmp_path / "second").symlink_to(tmp_path / "first" / "layout")
    layout = Layout(tmp_path / "second")
    assert await read(layout, DIGEST) == CONTENT
    await push(layout, "new", OTHER)
    assert await Layout(root).list_tags() == ["new", "tag"]


async def test_huge_sparse_files_are_not_read(root: Path) -> None:
    """A terabyte of nothing costs no memory: documents have limits, and are read no further."""
    for place, job in {
        "index.json": READING_TAGS["list tags"],
        f"{BLOBS}/{MANIFEST_DIGEST.hex}": READING_MANIFEST["get by tag"],
        "oci-layout": READING_TAGS["list tags"],
    }.items():
        os.truncate(root / place, 2**40)
        with pytest.raises(RegistryError, match=r"limit|over "):
            async with asyncio.timeout(_SECONDS):
                await job(root)


async def test_a_lock_that_others_hold_does_not_hold_whoever_gives_up(root: Path) -> None:
    """A thread that waits for it ends when its caller does: a program that is told to end does so at once."""
    held = os.open(root / ".nixcache-lock", os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        pushing = asyncio.create_task(Layout(root, lock_seconds=600).push_blob(DIGEST, CONTENT))
        removing = asyncio.create_task(LayoutRemover(root, lock_seconds=600).remove(MANIFEST_DIGEST))
        await asyncio.sleep(0.1)
        for task in (pushing, removing):
            task.cancel()
        await asyncio.wait([pushing, removing])
        async with asyncio.timeout(_SECONDS):
            await asyncio.get_running_loop().shutdown_default_executor()
    finally:
        os.close(held)
