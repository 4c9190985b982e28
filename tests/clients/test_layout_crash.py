"""Layouts when programs are killed, or write at the same time."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.errors import NotFoundError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from tests.clients.layout_story import killed_at, manifest, start

_SECONDS = 60

_TAGGING = """
from nixcache_oci.clients.layout import Layout
job = Layout(Path(sys.argv[2])).push_manifest("tag", sys.argv[3].encode(), sys.argv[4])
"""

_TAGS = """
import asyncio, sys
from pathlib import Path
from nixcache_oci.clients.layout import Layout
async def main():
    layout = Layout(Path(sys.argv[1]))
    for number in range(int(sys.argv[3])):
        await layout.push_manifest(f"{sys.argv[2]}-{number}", sys.argv[4].encode(), sys.argv[5])
asyncio.run(main())
"""


def _unfinished(root: Path) -> list[Path]:
    return list(root.glob(".nixcache-unfinished-*"))


async def _tagged(layout: Layout) -> bytes | None:
    try:
        return (await layout.get_manifest("tag")).content
    except NotFoundError:
        return None


def _push_and_die(root: Path, step: int, text: str) -> bool:
    return killed_at(step, _TAGGING, root, manifest(text).decode(), media_type.IMAGE_MANIFEST)


async def test_killed_while_a_tag_moves(tmp_path: Path) -> None:
    """Whenever a writer dies, the tag is as before or as it should be, and the next writer goes on."""
    layout = Layout(tmp_path)
    old, new = manifest("old"), manifest("new")
    seen = []
    for step in range(1, 10):
        await layout.push_manifest("tag", old, media_type.IMAGE_MANIFEST)
        (tmp_path / "blobs/sha256" / Digest.of(new).hex).unlink(missing_ok=True)
        was_killed = _push_and_die(tmp_path, step, "new")
        seen.append(await _tagged(Layout(tmp_path)))
        if not was_killed:
            break
    # The manifest, its folder, index.json, its folder; only then was index.json renamed. Then no kill at all.
    assert seen == [old, old, old, new, new]


async def test_killed_while_a_layout_is_made(tmp_path: Path) -> None:
    """A layout that is half made is an empty one, and the next writer finishes it."""
    for step in range(1, 10):
        root = tmp_path / str(step)
        was_killed = _push_and_die(root, step, "new")
        assert await _tagged(Layout(root)) in (None, manifest("new"))
        await Layout(root).push_manifest("other", manifest("other"), media_type.IMAGE_MANIFEST)
        assert set(await Layout(root).list_tags()) - {"tag"} == {"other"}
        if not was_killed:
            break
    else:
        pytest.fail("it was always killed")


async def test_what_the_dead_leave(tmp_path: Path) -> None:
    """Unfinished files go when their writer must be dead; one that may still be written to stays."""
    assert _push_and_die(tmp_path, 1, "new")
    [unfinished] = _unfinished(tmp_path)
    fresh = tmp_path / ".nixcache-unfinished-fresh"
    fresh.write_bytes(b"")
    two_days_ago = time.time() - 2 * 86400
    os.utime(unfinished, (two_days_ago, two_days_ago))
    await Layout(tmp_path).push_blob(Digest.of(b""), b"")
    assert _unfinished(tmp_path) == [fresh]


async def test_programs_that_tag_at_once(tmp_path: Path) -> None:
    """Programs that make and write one layout at the same time lose nothing, not even the first tag."""
    count = 10
    names = ("a", "b", "c")
    processes = [
        start(_TAGS, tmp_path, name, str(count), manifest(name).decode(), media_type.IMAGE_MANIFEST)
        for name in names
    ]
    layout = Layout(tmp_path)
    while any(process.poll() is None for process in processes):
        with suppress(NotFoundError):  # no reader ever meets a layout that is damaged
            await layout.list_tags()
        await asyncio.sleep(0.002)
    assert [process.communicate(timeout=_SECONDS)[1] for process in processes] == [b""] * 3
    expected = {f"{name}-{number}" for name in names for number in range(count)}
    assert set(await layout.list_tags()) == expected
