"""Caches that are opened when a request names them: what is bounded, and who is never asked."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from nixcache_oci.cache.table_set import TableSet
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT
from nixcache_oci.oci.manifest import Manifest
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.proxy.cache_set import CacheSet, ConfiguredCache
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.on_demand import caches as on_demand
from nixcache_oci.proxy.on_demand.caches import OnDemandCaches
from nixcache_oci.proxy.on_demand.disk import OnDemandDisk
from nixcache_oci.proxy.on_demand.settings import OnDemandSettings
from nixcache_oci.proxy.opened_cache import OpenedCache
from nixcache_oci.proxy.packs.memory import PackBudget
from nixcache_oci.proxy.prefix import RepositoryPattern
from nixcache_oci.proxy.server import serving
from tests.support.front import proxy_config
from tests.support.ghcr import GhcrDouble
from tests.support.objects import hash_part_of, store_object
from tests.support.process import until
from tests.support.publish import publish

PATTERNS = tuple(map(RepositoryPattern.parse, ("ghcr.io/*", "*.example/*")))


@dataclass
class World:
    """Registries in a folder.

    Attributes:
        opened: repositories that were opened, as often as they were.
        gate: what every repository waits for before it lists its tags.
    """

    folder: Path
    opened: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: RegistryError | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    def layout(self, name: str) -> Layout:
        return Layout(self.folder / "registries" / name)

    async def put(self, name: str, *objects: str) -> None:
        await publish(self.layout(name), [store_object(one) for one in objects or (name,)])

    def open(self, reference: RegistryReference, *, must_be_public: bool) -> Repository:
        del must_be_public
        name = reference.repository.removesuffix("/nix-cache").replace("/", "-")
        self.opened.append(name)
        return Gated(self.folder / "registries" / name, self)

    def caches(self) -> OnDemandCaches:
        settings = OnDemandSettings(PATTERNS, self.open)
        return OnDemandCaches(settings, proxy_config(self.folder), PackBudget(2**28, 32))


class Gated(Layout):
    """A repository that takes its time, or fails."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path)
        self._world = world

    async def list_tags(self) -> list[str]:
        await self._world.gate.wait()
        if self._world.error is not None:
            raise self._world.error
        return await super().list_tags()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@asynccontextmanager
async def running(world: World) -> AsyncIterator[OnDemandCaches]:
    caches = world.caches()
    try:
        yield caches
    finally:
        world.gate.set()
        await caches.close()


async def has(caches: OnDemandCaches, name: str, path: str | None = None) -> bool:
    """Ask for a narinfo, as the endpoint does."""
    async with caches.using(f"o/{name}") as cache:
        if cache is None:
            return False
        part = hash_part_of(path or f"o-{name}").encode()
        if cache.find(part) is None:  # type: ignore[arg-type]
            await cache.index.current()
        return cache.find(part) is not None  # type: ignore[arg-type]


def is_paused(cache: OpenedCache) -> bool:
    return cache.index.is_paused


async def settled(caches: OnDemandCaches) -> None:
    while caches._tasks or caches._opening:
        await asyncio.wait([*caches._tasks, *caches._opening.values()])
        await asyncio.sleep(0)


async def test_a_hundred_requests_open_a_cache_once(world: World) -> None:
    """They share the opening, and the index."""
    await world.put("o-a")
    world.gate.clear()
    async with running(world) as caches:
        asking = [asyncio.create_task(has(caches, "a")) for _ in range(100)]
        await until(lambda: world.opened)
        world.gate.set()
        assert all(await asyncio.gather(*asking))
        assert caches.at(b"o/a") is not None
    assert world.opened == ["o-a"]


@pytest.mark.parametrize("kind", ["nothing", "image", "denied", "down"])
async def test_what_is_no_cache_is_not_asked_again_for_a_minute(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container image's repository is none, nor one that is not for everybody; no trace is kept on disk."""
    if kind == "image":
        layout = world.layout("o-a")
        await layout.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
        content = Manifest(None, EMPTY_CONFIG, ()).render()
        await layout.push_manifest("latest", content, media_type.IMAGE_MANIFEST)
    elif kind != "nothing":
        await world.put("o-a")
        world.error = RegistryError("no", status=403 if kind == "denied" else 503)
    async with running(world) as caches:
        for _ in range(3):
            assert not await has(caches, "a")
            await settled(caches)
        assert world.opened == ["o-a"]
        assert caches.opened == ()
        if kind != "down":
            assert list((world.folder / "index" / "on-demand").iterdir()) == []
        world.error = None
        await world.put("o-a")
        clock = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: clock() + on_demand.ABSENT_SECONDS)
        assert await has(caches, "a")


async def test_few_are_open_and_the_least_recently_used_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that a request uses stays; where all are in use, another one is refused."""
    monkeypatch.setattr(on_demand, "MOST_OPEN", 3)
    for name in "abcde":
        await world.put(f"o-{name}")
    async with running(world) as caches:
        for name in "abcd":
            assert await has(caches, name)
        await settled(caches)
        assert [cache.prefix for cache in caches.opened] == ["o/b", "o/c", "o/d"]
        async with caches.using("o/b"), caches.using("o/c"), caches.using("o/d"):
            assert not await has(caches, "e")
        async with caches.using("o/b") as used:
            for name in "aecd":
                assert await has(caches, name)
            await settled(caches)
            assert len(caches.opened) == 3
            assert used in caches.opened


async def test_idle_caches_rest_and_are_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit of one that rests costs no network; for a miss, the repository is asked first."""
    await world.put("o-a")
    async with running(world) as caches:
        assert await has(caches, "a")
        await caches.sweep()
        [cache] = caches.opened
        assert is_paused(cache) is False
        monkeypatch.setattr(on_demand, "PAUSE_SECONDS", 0)
        await caches.sweep()
        assert is_paused(cache) is True
        assert caches.at(b"o/a") is None
        await world.put("o-a", "new")
        world.gate.clear()
        assert await has(caches, "a")
        assert caches.at(b"o/a") is cache
        asking = asyncio.create_task(has(caches, "a", "new"))
        world.gate.set()
        assert await asking
        monkeypatch.setattr(on_demand, "CLOSE_SECONDS", 0)
        await caches.sweep()
        await settled(caches)
        assert caches.opened == ()
        world.gate.clear()
        assert await has(caches, "a")  # from the disk
    assert world.opened == ["o-a", "o-a"]


async def test_what_becomes_private_is_closed(world: World) -> None:
    """What was read while everybody might is not kept, neither in memory nor on disk."""
    await world.put("o-a")
    async with running(world) as caches:
        assert await has(caches, "a")
        world.error = RegistryError("no", status=401)
        with suppress(RegistryError):
            await caches.opened[0].index.refresh(thoroughly=True)
        await caches.sweep()
        await settled(caches)
        assert not await has(caches, "a")
        assert list((world.folder / "index" / "on-demand").iterdir()) == []


async def test_the_disk_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest closed ones go first, then the least recently used; before anything more is read."""
    monkeypatch.setattr(on_demand, "MOST_OPEN", 2)
    for name in "abcdef":
        await world.put(f"o-{name}")
    async with running(world) as caches:
        assert await has(caches, "a")
        await settled(caches)
        root = world.folder / "index" / "on-demand"
        size = sum(path.lstat().st_size for path in root.rglob("*"))
        monkeypatch.setattr(on_demand, "_KEPT_BYTES", 3 * size)
        for name in "bcdef":
            assert await has(caches, name)
            await settled(caches)
        await caches._make_space()
        assert caches.disk_bytes <= 3 * size
        assert caches.opened
        monkeypatch.setattr(on_demand, "_KEPT_BYTES", 0)
        await caches._make_space()
        assert list(root.iterdir()) == []
        assert caches.opened == ()


def test_only_folders_that_changed_are_walked_through(tmp_path: Path) -> None:
    """Opening one cache must not take longer for every other that was opened before."""
    disk = OnDemandDisk(tmp_path)
    files = {name: tmp_path / name / "tables" / "a.table" for name in ("same", "new")}
    for file in files.values():
        file.parent.mkdir(parents=True)
        file.write_bytes(b"1")
        for folder in (file.parent, file.parent.parent):
            os.utime(folder, (0, 0))  # what comes now comes later, by any clock
    before = disk.shrink((), 2**30, 10)
    for file in files.values():
        file.write_bytes(b"1" * 1001)  # no index does that: only who walks through the folder sees it
    (files["new"].parent / "b.table").touch()
    after = disk.shrink((), 2**30, 10)
    assert {name: after[name] - before[name] for name in files} == {"same": 0, "new": 1000}
    files["same"].unlink()
    assert disk.shrink((), 2**30, 10)["same"] == before["same"] - 1


def test_a_folder_that_just_changed_is_walked_through_again(tmp_path: Path) -> None:
    """What comes within one tick of the file system's clock leaves no trace in the folder's time."""
    disk = OnDemandDisk(tmp_path)
    (tmp_path / "a").mkdir()
    changed = time.time() + 60
    os.utime(tmp_path / "a", (changed, changed))
    before = disk.shrink((), 2**30, 10)
    (tmp_path / "a" / "b.table").write_bytes(b"123")
    os.utime(tmp_path / "a", (changed, changed))
    assert disk.shrink((), 2**30, 10)["a"] == before["a"] + 3


async def test_folders_are_bounded_in_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small caches take few bytes, but each takes files."""
    monkeypatch.setattr(on_demand, "MOST_FOLDERS", 2)
    monkeypatch.setattr(on_demand, "MOST_OPEN", 1)
    for name in "abcd":
        await world.put(f"o-{name}")
    async with running(world) as caches:
        for name in "abcd":
            assert await has(caches, name)
            await settled(caches)
    assert len(list((world.folder / "index" / "on-demand").iterdir())) <= 3


async def test_a_large_cache_is_read_in_part(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is configured nowhere gets less room than what is."""
    monkeypatch.setattr(on_demand, "MOST_ENTRIES", 2)
    await world.put("o-a", "one", "two", "three")
    async with running(world) as caches:
        assert not await has(caches, "a", "one")
        assert caches.opened[0].index.state.left_out is not None


async def test_few_caches_are_read_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes later waits, and reads when one has finished, or failed."""
    reading = 0
    gate = asyncio.Event()
    read = LiveIndex._look

    async def look(index: LiveIndex) -> TableSet:
        nonlocal reading
        async with index._limits.turns:
            reading += 1
            await gate.wait()
        return await read(index)

    monkeypatch.setattr(LiveIndex, "_look", look)
    names = "abcdef"
    for name in names:
        await world.put(f"o-{name}")
    async with running(world) as caches:
        asking = [asyncio.create_task(has(caches, name)) for name in names]
        await until(lambda: reading == on_demand.MOST_READ_AT_ONCE and len(caches.opened) == len(names))
        assert reading == on_demand.MOST_READ_AT_ONCE
        gate.set()
        assert all(await asyncio.gather(*asking))


async def test_a_slow_registry_gives_its_turn_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it sends: what a stranger controls ends."""
    monkeypatch.setattr(on_demand, "READ_SECONDS", 0.05)
    await world.put("o-a")
    world.gate.clear()
    async with running(world) as caches:
        assert not await has(caches, "a")
        await settled(caches)
        assert caches.opened == ()


async def test_all_narinfos_together_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used caches go."""
    monkeypatch.setattr(on_demand, "MOST_ALL_ENTRIES", 3)
    for name in "abc":
        await world.put(f"o-{name}", f"o-{name}", f"{name}-more")
    async with running(world) as caches:
        for name in "abc":
            assert await has(caches, name)
        await caches.sweep()
        assert sum(cache.index.entries for cache in caches.opened) <= 3


HOSTILE = [
    "/o/../nix-cache-info",
    "/o/%2e%2e/nix-cache-info",
    "/%2e%2e/o/nix-cache-info",
    "/o/a%00b/nix-cache-info",
    "/%00o/a/nix-cache-info",
    "/o/a%00/nix-cache-info",
    "/o/a/%00/nix-cache-info",
    "/registry.example/a%00b/nix-cache-info",
    "/o/a%2fb/nix-cache-info",
    "/o/" + "n" * 300 + "/nix-cache-info",
    "/o/a/b/nix-cache-info",
    "/other.org/a/nix-cache-info",
    "/ghcr.io.other.org/a/nix-cache-info",
    "/ghcr.io:444/a/nix-cache-info",
    "/user@ghcr.io/a/nix-cache-info",
    "/ghcr.io/A%20B/nix-cache-info",
    "/127.0.0.1:5000/a/nix-cache-info",
    "/localhost/a/nix-cache-info",
    "/nar/a/nix-cache-info",
    "//o/a/nix-cache-info",
    "/o//a/nix-cache-info",
]


@pytest.mark.parametrize(
    "end", ["nix-cache-info", "0" * 32 + ".narinfo", "nar/" + "0" * 64 + ".nar", "public-key"]
)
async def test_wrong_names_are_404_and_nobody_is_asked(world: World, end: str) -> None:
    """For everything that is below a prefix."""
    async with served(world) as ask:
        for path in HOSTILE:
            assert await ask(path.replace("nix-cache-info", end)) == 404, path
    assert world.opened == []


@pytest.mark.parametrize("end", ["nix-cache-info", "0" * 32 + ".narinfo"])
async def test_a_nul_byte_is_no_request(world: World, end: str) -> None:
    """RFC 9112, section 3: no request line has one, and such a line is answered with 400."""
    async with served(world) as ask:
        for prefix in ("/\0o/a", "/o\0/a", "/o/a\0", "/o/a\0b", "/registry.example/a\0b", "/o/\0/a"):
            assert await ask(f"{prefix}/{end}") == 400, prefix
        assert await ask(f"/o/a/\0{end}") == 400
        assert await ask(f"/o/a/{end}\0") == 400
    assert world.opened == []


@asynccontextmanager
async def served(world: World, **changes: Any) -> AsyncIterator[Callable[[str], Any]]:  # noqa: ANN401  of any field
    """Serve an empty cache, and others on demand; gives what asks for the status of a path as it is."""
    config = proxy_config(world.folder, **changes)
    settings = OnDemandSettings(PATTERNS, world.open)
    async with serving(config, [ConfiguredCache(Layout(world.folder / "none"))], on_demand=settings) as [url]:
        host, _, port = url.removeprefix("http://").partition(":")

        async def ask(path: str) -> int:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return int(answer.split()[1])

        yield ask


async def test_capitals_name_the_same_cache(world: World) -> None:
    """Registries have none, but who writes a flake copies GitHub's spelling."""
    await world.put("o-a")
    async with served(world) as ask:
        for _ in range(2):
            for prefix in ("o/a", "O/A", "ghcr.io/o/a/nix-cache", "_/ghcr.io/O/a/nix-cache"):
                assert await ask(f"/{prefix}/{hash_part_of('o-a')}.narinfo") == 200
    assert world.opened == ["o-a"]


async def test_a_stranger_cannot_name_a_private_address(tmp_path: Path) -> None:
    """Whatever the name resolves to: the very address that is connected to is judged."""
    with GhcrDouble(private=False) as ghcr:
        reference = RegistryReference.of(ghcr.host, "o/a", "nix-cache")
        client = Registry(reference, None, patience=5, is_guarded=True, is_public=lambda _: False)
        with pytest.raises(RegistryError, match="private address"):
            await client.list_tags()
        await client.close()
        assert ghcr.requests == []
    settings = OnDemandSettings((RepositoryPattern.parse("*/*"),), lambda *_, **__: Layout(tmp_path))
    for host in (
        "127.0.0.1:5000",
        "localhost",
        "10.0.0.1",
        "169.254.169.254",
        "0x7f.1",
        "2130706433.",
        "[::1]",
    ):
        assert settings.allows(f"{host}/a/b") is None, host
    assert settings.allows("registry.example/a/b") is not None
    assert CacheSet((), PackBudget(2**28, 1)).begin("o/a") is False


async def test_the_front_answers_below_a_prefix(world: World) -> None:
    """As at the root: in the same bytes as the library, whose application is not asked the second time."""
    await world.put("o-a")
    config = proxy_config(world.folder)
    settings = OnDemandSettings(PATTERNS, world.open)
    async with (
        serving(config, [ConfiguredCache(Layout(world.folder / "none"))], on_demand=settings) as [url],
        aiohttp.ClientSession() as session,
    ):
        bodies = []
        for _ in range(2):
            async with session.get(f"{url}/o/a/{hash_part_of('o-a')}.narinfo") as answer:
                assert answer.status == 200
                bodies.append(await answer.read())
        assert bodies[0] == bodies[1]
        url_line = next(line for line in bodies[0].decode().splitlines() if line.startswith("URL: "))
        async with session.get(f"{url}/o/a/{url_line.removeprefix('URL: ')}") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/o/a/_status") as answer:
            status = await answer.json()
        assert (status["entries"], status["prefix"]) == (1, "o/a")
        async with session.get(f"{url}/_status") as answer:
            assert (await answer.json())["counters"]["hits"] == 2
