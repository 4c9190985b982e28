"""The spool: what it keeps over a restart, and what it bounds."""

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from nixcache_oci.errors import UsageError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.proxy.uploads import nar_files
from nixcache_oci.proxy.uploads import spool as module
from nixcache_oci.proxy.uploads.interface import UploadRefusedError
from nixcache_oci.proxy.uploads.spool import Spool
from nixcache_oci.proxy.uploads.spooled import SpooledNar
from tests.support.objects import store_object
from tests.support.uploads import Sent

_SPACE = 10**6


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


async def _take(spool: Spool, sent: Sent) -> SpooledNar:
    assert sent.narinfo.file_hash is not None
    hex_ = sent.narinfo.file_hash.digest_hex
    await spool.take_nar(_pieces(sent.content), len(sent.content), hex_, sent.narinfo.compression)
    nar = spool.find_nar(hex_)
    assert nar is not None
    return nar


async def _add(spool: Spool, sent: Sent) -> NarInfo:
    """As the receiver does it: the narinfo names the file in the spool."""
    nar = await _take(spool, sent)
    narinfo = replace(sent.narinfo, url=nar.url)
    await spool.add_path(narinfo, nar)
    return narinfo


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where NARs wait for their narinfo; those that waited in memory go into the journal."""
    if request.param == "file":
        monkeypatch.setattr(module, "SMALL_NAR_BYTES", 0)
    return str(request.param)


@pytest.mark.usefixtures("place")
async def test_a_restart_keeps_paths_and_nars(tmp_path: Path) -> None:
    """Their figures are read again; what was only begun is removed."""
    one, orphan = Sent.of(store_object("one")), Sent.of(store_object("orphan"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        narinfo = await _add(spool, one)
        await spool.add_signatures(orphan.narinfo)
        measured = (await _take(spool, orphan)).measured
        used = spool.used_bytes
    (tmp_path / "incoming" / "begun").write_bytes(b"x")
    (tmp_path / "nar" / "nobody.nar").write_bytes(b"x")
    async with Spool.opened(tmp_path, _SPACE) as spool:
        [path] = spool.paths.values()
        [signed] = spool.signed.values()
        assert (path.narinfo, signed.narinfo) == (narinfo, orphan.narinfo)
        assert measured.file_hash is not None
        again = spool.find_nar(measured.file_hash.digest_hex)
        assert again is not None
        assert again.measured == measured
        assert path.nar is not None
        for nar, sent in ((path.nar, one), (again, orphan)):
            with spool.open_nar(nar) as file:
                assert file.read() == sent.content
        assert spool.used_bytes == used
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_a_killed_proxy_forgets_nars_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their narinfos were not acknowledged: the client is told to send both again."""
    monkeypatch.setattr(Spool, "_save_orphans", lambda _: None)
    orphan = Sent.of(store_object("orphan"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        await _take(spool, orphan)
    async with Spool.opened(tmp_path, _SPACE) as spool:
        assert (spool.orphans, spool.used_bytes) == (0, 0)


async def test_a_path_without_its_nar_is_no_path(tmp_path: Path, place: str) -> None:
    """A power cut may tear what was not acknowledged: neither half is kept, and the next upload works."""
    one = Sent.of(store_object("one"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        await _add(spool, one)
    [file] = (tmp_path / ("nar" if place == "file" else "journal")).iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    async with Spool.opened(tmp_path, _SPACE) as spool:
        assert dict(spool.paths) == {}
        await spool.drop_old_orphans()
        await _add(spool, one)
    async with Spool.opened(tmp_path, _SPACE) as spool:
        assert len(spool.paths) == 1


async def test_what_was_removed_stays_removed(tmp_path: Path) -> None:
    """Also where others keep its file of the journal."""
    one, other = Sent.of(store_object("one")), Sent.of(store_object("other"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        await _add(spool, one)
        await _add(spool, other)
        for sent in (one, other):
            await spool.add_signatures(sent.narinfo)
        part = one.narinfo.store_path.hash_part
        await spool.remove([spool.paths[part], spool.signed[part]])
    async with Spool.opened(tmp_path, _SPACE) as spool:
        assert list(spool.paths) == list(spool.signed) == [other.narinfo.store_path.hash_part]
        await spool.remove([*spool.paths.values(), *spool.signed.values()])
        assert spool.used_bytes == 0
    assert list((tmp_path / "journal").iterdir()) == []


@pytest.mark.usefixtures("place")
async def test_a_path_that_is_replaced_keeps_its_nar(tmp_path: Path) -> None:
    """With more signatures, while the batch with the old ones is published and removed."""
    one = Sent.of(store_object("one"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        narinfo = await _add(spool, one)
        [before] = spool.paths.values()
        assert before.nar is not None
        await asyncio.gather(spool.add_path(replace(narinfo, sigs=()), before.nar), spool.remove([before]))
        [path] = spool.paths.values()
        assert path.nar is before.nar
        with spool.open_nar(path.nar) as file:
            assert file.read() == one.content
        await spool.remove([path])
        assert spool.used_bytes == 0


async def test_a_narinfo_that_cannot_be_written_keeps_its_nar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is 413, and the narinfo alone may be sent again."""
    one = Sent.of(store_object("one"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        nar = await _take(spool, one)
        with monkeypatch.context() as full:
            full.setattr("os.fdatasync", _fail)
            with pytest.raises(UploadRefusedError, match="No space left") as caught:
                await spool.add_path(one.narinfo, nar)
        assert (caught.value.status, spool.orphans) == (413, 1)
        await spool.add_path(one.narinfo, nar)
    async with Spool.opened(tmp_path, _SPACE) as spool:
        assert (len(spool.paths), spool.orphans) == (1, 0)


def _fail(_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_nars_without_a_path_are_dropped_after_a_power_cut(tmp_path: Path) -> None:
    """They were not synced: another start of the machine may find other bytes under their names."""
    orphan = Sent.of(store_object("orphan"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        await _take(spool, orphan)
    (tmp_path / "boot").write_bytes(b"another")
    async with Spool.opened(tmp_path, _SPACE) as spool:
        assert (spool.orphans, spool.used_bytes) == (0, 0)


async def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds no room there waits in a file."""
    one, other, third = (Sent.of(store_object(seed)) for seed in ("one", "other", "third"))
    monkeypatch.setattr(module, "MOST_MEMORY_BYTES", max(len(one.content), len(third.content)))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        first, second = await _take(spool, one), await _take(spool, other)
        assert (first.content, second.content) == (one.content, None)
        await spool.add_path(one.narinfo, first)
        assert (await _take(spool, third)).content == third.content


@pytest.mark.usefixtures("place")
async def test_orphans_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever uploads NARs alone pushes out its own oldest, and a day ends them all."""
    monkeypatch.setattr(module, "MOST_ORPHANS", 3)
    async with Spool.opened(tmp_path, _SPACE) as spool:
        nars = [
            await _take(spool, Sent.of(store_object(f"orphan {number}".replace(" ", "-"))))
            for number in range(5)
        ]
        assert [spool.find_nar(nar.hex) is not None for nar in nars] == [False, False, True, True, True]
        for nar in nars:
            nar.since -= module.ORPHAN_SECONDS
        await spool.drop_old_orphans()
        assert (spool.orphans, spool.used_bytes) == (0, 0)
    assert list((tmp_path / "nar").iterdir()) == []


async def test_paths_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is held in memory."""
    monkeypatch.setattr(module, "MOST_PATHS", 1)
    one, other = Sent.of(store_object("one")), Sent.of(store_object("other"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        await _add(spool, one)
        with pytest.raises(UploadRefusedError, match="try again later"):
            await _add(spool, other)
        await spool.remove(list(spool.paths.values()))
        await _add(spool, other)


async def test_too_many_at_once_wait_and_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a thread; 4xx, for 503 would make some versions of Nix hang."""
    monkeypatch.setattr(module, "SMALL_NAR_BYTES", 0)
    monkeypatch.setattr(nar_files, "MOST_AT_ONCE", 1)
    monkeypatch.setattr(nar_files, "TURN_SECONDS", 0.01)
    one, gate = Sent.of(store_object("one")), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        await gate.wait()
        yield one.content

    async with Spool.opened(tmp_path, _SPACE) as spool:
        assert one.narinfo.file_hash is not None
        hex_ = one.narinfo.file_hash.digest_hex
        first = asyncio.create_task(spool.take_nar(stalled(), len(one.content), hex_, "zstd"))
        await asyncio.sleep(0)
        with pytest.raises(UploadRefusedError, match="too many uploads"):
            await _take(spool, Sent.of(store_object("other")))
        gate.set()
        await first


@pytest.mark.usefixtures("place")
async def test_a_nar_of_two_paths_stays_for_both(tmp_path: Path) -> None:
    """Different paths may have the same contents."""
    one = Sent.of(store_object("one", contents=b"same"))
    other = Sent.of(store_object("other", contents=b"same"))
    async with Spool.opened(tmp_path, _SPACE) as spool:
        nar = await _take(spool, one)
        await spool.add_path(one.narinfo, nar)
        await spool.add_path(other.narinfo, nar)
        await spool.remove([spool.paths[one.narinfo.store_path.hash_part]])
        with spool.open_nar(nar) as file:
            assert file.read() == one.content
        await spool.remove([spool.paths[other.narinfo.store_path.hash_part]])
        assert (spool.find_nar(nar.hex), spool.used_bytes) == (None, 0)


async def test_two_programs_do_not_share_a_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would publish and remove what the other took."""
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.0)
    async with Spool.opened(tmp_path, _SPACE):
        with pytest.raises(UsageError, match="NIXCACHE_UPLOAD_DIR"):
            async with Spool.opened(tmp_path, _SPACE):
                pass
