"""Narinfos that upstreams gave are kept: over restarts, within bounds, and no longer than they hold."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.cache.index_folder import NOWHERE
from nixcache_oci.clients.upstream import narinfo_store
from nixcache_oci.clients.upstream.address import UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.narinfo_store import (
    FILE,
    KEPT_SECONDS,
    MAX_NARINFO_BYTES,
    NarinfoStore,
)
from nixcache_oci.errors import UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, SecretKey, fingerprint
from nixcache_oci.nix.store_path import HashPart
from tests.support.objects import hash_part_of
from tests.support.upstream_server import HASH_PART, asking, narinfo_text, refusing, serve

KEY = "0123456789abcdef"
SIGNER = UrlSigner(bytes(32))
TRUSTED = SecretKey("trusted-1", bytes(range(32)))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Upstream:
    """One that has a path until it is told otherwise, and counts what it is asked."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.status = 200
        self.asked: list[str] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.Response(status=self.status, text=self.text if self.status == 200 else "")


@asynccontextmanager
async def upstream(text: str = narinfo_text()) -> AsyncIterator[Upstream]:
    served = Upstream(text)
    async with serve(served.answer) as served.url:
        yield served


def signed() -> str:
    narinfo = NarInfo.parse(narinfo_text())
    return narinfo_text() + f"Sig: {TRUSTED.sign(fingerprint(narinfo))}\n"


def trusted() -> tuple[PublicKey, ...]:
    return (TRUSTED.public_key,)


async def saved(folder: Path, count: int = 1, *, key: str = KEY, size: int = 100) -> None:
    store = NarinfoStore.open(folder)
    for number in range(count):
        store.put(key, hash_part_of(f"{number}"), bytes(size))
    await store.close()


async def test_what_an_upstream_gave_is_known_after_a_restart(tmp_path: Path) -> None:
    """On a train, too; and it leads where it led."""
    async with upstream(signed()) as one:
        async with asking(
            one.url, signer=SIGNER, client_keys=trusted(), store=NarinfoStore.open(tmp_path)
        ) as upstreams:
            first = await upstreams.find(HASH_PART)
            assert await upstreams.find(HASH_PART) == first
        assert len(one.asked) == 1
    async with asking(
        one.url, signer=SIGNER, client_keys=trusted(), store=NarinfoStore.open(tmp_path)
    ) as upstreams:
        assert first is not None
        assert await upstreams.find(HASH_PART) == first
        assert upstreams.health()[0].kept == 1
        with pytest.raises(UpstreamError):
            await upstreams.find(hash_part_of("never asked for"))


async def test_nothing_is_served_of_an_upstream_that_left(tmp_path: Path) -> None:
    """Its owner may have been the reason."""
    async with upstream(signed()) as one, upstream() as other:
        other.status = 404
        async with asking(one.url, store=NarinfoStore.open(tmp_path)) as upstreams:
            assert await upstreams.find(HASH_PART)
        async with asking(other.url, store=NarinfoStore.open(tmp_path)) as upstreams:
            assert await upstreams.find(HASH_PART) is None


async def test_misses_are_not_kept(tmp_path: Path) -> None:
    """What is published after that is found at once."""
    async with upstream() as one, asking(one.url, store=NarinfoStore.open(tmp_path)) as upstreams:
        one.status = 404
        assert await upstreams.find(HASH_PART) is None
        one.status = 200
        assert await upstreams.find(HASH_PART)


async def test_a_miss_ahead_of_a_client_is_believed_for_a_moment() -> None:
    """The client's own request follows at once."""
    clock = Clock()
    async with upstream() as one, asking(one.url, clock=clock) as upstreams:
        one.status = 404
        assert await upstreams.find_ahead(HASH_PART) is None
        one.status = 200
        assert await upstreams.find(HASH_PART) is None
        clock.now += 11
        assert await upstreams.find(HASH_PART)


async def test_what_nobody_trusts_is_asked_for_again() -> None:
    """It may be signed later; an upstream that cannot say is believed what it said."""
    clock = Clock()
    async with (
        upstream() as one,
        asking(
            one.url, client_keys=trusted(), store=NarinfoStore(clock=clock), answer_seconds=10
        ) as upstreams,
    ):
        unsigned = await upstreams.find(HASH_PART)
        assert unsigned is not None
        one.text = signed()
        assert await upstreams.find(HASH_PART) == unsigned  # of the same burst
        clock.now += 61
        one.status = 503
        assert await upstreams.find(HASH_PART) == unsigned
        one.status = 200
        found = await upstreams.find(HASH_PART)
        assert found is not None
        assert found.sigs
        asked = len(one.asked)
        clock.now += 3600
        assert await upstreams.find(HASH_PART) == found
        assert len(one.asked) == asked


async def test_a_narinfo_whose_nar_is_gone_is_forgotten(tmp_path: Path) -> None:
    """Also on disk: else a restart would bring it back."""
    async with upstream(signed()) as one:
        key = parse_upstream(one.url).key

        async with asking(one.url, store=NarinfoStore.open(tmp_path)) as upstreams:
            found = await upstreams.find(HASH_PART)
            assert found is not None
            one.status = 404
            with pytest.raises(UpstreamNotFoundError):
                async with upstreams.open_nar(key, found.url.removeprefix(f"upstream/{key}/")):
                    pass
            assert await upstreams.find(HASH_PART) is None
        async with asking(one.url, store=NarinfoStore.open(tmp_path)) as upstreams:
            assert await upstreams.find(HASH_PART) is None


async def test_narinfos_are_kept_for_as_long_as_nix_keeps_them() -> None:
    """Nor where the clock was set back behind them."""
    clock = Clock()
    store = NarinfoStore(clock=clock)
    for now, is_there in ((0, True), (KEPT_SECONDS - 1, True), (KEPT_SECONDS, False), (-1, False)):
        clock.now = 10 * KEPT_SECONDS
        store.put(KEY, HASH_PART, b"x")
        clock.now += now
        assert (store.get(KEY, HASH_PART) is not None) == is_there


async def test_narinfos_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used are forgotten; on disk they take three times as much at most."""
    monkeypatch.setattr(narinfo_store, "MAX_BYTES", 20_000)
    monkeypatch.setattr(narinfo_store, "_REWRITTEN_ABOVE_BYTES", 40_000)
    store = NarinfoStore.open(tmp_path)
    for number in range(100):
        store.put(KEY, hash_part_of("used"), bytes(500))
        store.put(KEY, hash_part_of(f"{number}"), bytes(500))
        await store._save()
        assert (tmp_path / FILE).stat().st_size <= 60_000
    assert store.get(KEY, hash_part_of("used"))
    assert store.get(KEY, hash_part_of("99"))
    assert store.get(KEY, hash_part_of("50")) is None
    assert store._bytes <= 20_000
    await store.close()
    again = NarinfoStore.open(tmp_path)
    assert again._entries.keys() >= {(KEY, hash_part_of("used")), (KEY, hash_part_of("99"))}
    assert again._bytes <= 20_000


async def test_a_large_narinfo_is_not_kept() -> None:
    """A few of them would displace all others."""
    store = NarinfoStore()
    store.put(KEY, HASH_PART, bytes(MAX_NARINFO_BYTES + 1))
    assert store.get(KEY, HASH_PART) is None
    store.put(KEY, HASH_PART, bytes(MAX_NARINFO_BYTES))
    assert store.get(KEY, HASH_PART)


@pytest.mark.parametrize("cut", range(1, 176, 25))
async def test_a_torn_end_costs_what_it_tore(tmp_path: Path, cut: int) -> None:
    """A power cut, or a full disk; what is saved later is found again."""
    await saved(tmp_path, 3)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-cut])
    store = NarinfoStore.open(tmp_path)
    assert store.get(KEY, hash_part_of("1"))
    assert store.get(KEY, hash_part_of("2")) is None
    store.put(KEY, hash_part_of("new"), b"new")
    await store.close()
    again = NarinfoStore.open(tmp_path)
    assert again.get(KEY, hash_part_of("1"))
    assert again.get(KEY, hash_part_of("new"))


async def test_wrong_bytes_are_not_served(tmp_path: Path) -> None:
    """A disk may lie."""
    await saved(tmp_path, 2)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / FILE).write_bytes(content)
    store = NarinfoStore.open(tmp_path)
    assert store.get(KEY, hash_part_of("0"))
    assert store.get(KEY, hash_part_of("1")) is None


async def test_what_others_may_have_written_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who can write it decides where requests go."""
    await saved(tmp_path)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / FILE).chmod(0o666)
    assert NarinfoStore.open(tmp_path).get(KEY, hash_part_of("0")) is None
    [warning] = caplog.records
    assert "others may have written it" in str(warning.__dict__["fields"])


@pytest.mark.parametrize("kind", ["folder", "link", "nowhere"])
async def test_without_a_file_narinfos_are_kept_in_memory(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, and no reason not to start."""
    if kind == "folder":
        (tmp_path / FILE).mkdir()
    elif kind == "link":
        (tmp_path / FILE).symlink_to("/dev/null")
    store = NarinfoStore.open(NOWHERE if kind == "nowhere" else tmp_path)
    store.put(KEY, HASH_PART, b"x")
    assert store.get(KEY, HASH_PART)
    await store.close()
    assert len(caplog.records) == 1
    assert "not kept on disk" in caplog.text


async def test_two_processes_share_a_file(tmp_path: Path) -> None:
    """Neither loses what the other one saved."""
    stores = [NarinfoStore.open(tmp_path) for _ in range(2)]
    for number in range(20):
        stores[number % 2].put(KEY, hash_part_of(f"{number}"), b"x")
        await stores[number % 2]._save()
    for store in stores:
        await store.close()
    again = NarinfoStore.open(tmp_path)
    assert all(again.get(KEY, HashPart(hash_part_of(f"{number}"))) for number in range(20))


async def test_an_unreachable_upstream_is_still_not_reached(tmp_path: Path) -> None:
    """What it never gave is unknown, as ever."""
    async with asking(refusing(), store=NarinfoStore.open(tmp_path)) as upstreams:
        with pytest.raises(UpstreamError):
            await upstreams.find(HASH_PART)
