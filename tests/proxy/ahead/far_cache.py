"""An upstream that notes what it is asked, answers when it is told to, and a proxy before it."""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.server import serving
from tests.support.front import let_run, proxy_config
from tests.support.objects import hash_part_of, store_object
from tests.support.upstream_server import serve

_MOST_SECONDS = 60


def names(count: int, start: str = "path") -> list[str]:
    """Name objects."""
    return [f"{start}-{number}" for number in range(count)]


def base_name_of(name: str) -> str:
    return store_object(name).narinfo.store_path.base_name


@dataclass
class FarCache:
    """A plain binary cache.

    Attributes:
        asked: paths, as they came.
        under_way: requests for NARs that are not answered yet; ``most_under_way`` is the most there were.
        gate: NARs are answered while it is set.
        wrong: bytes that are sent instead, by path.
        statuses: that are answered, by path; of all NARs: ``nar``.
    """

    narinfos: dict[str, NarInfo] = field(default_factory=dict)
    nars: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    wrong: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    url: str = ""
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def add(self, name: str, *, size: int = 300, references: Sequence[str] = ()) -> str:
        """Have an object; returns where its NAR is."""
        nar = random.Random(name).randbytes(size)
        path = f"nar/{hashlib.sha256(nar).hexdigest()}.nar.xz"
        self.nars[path] = nar
        self.narinfos[hash_part_of(name)] = replace(
            store_object(name, references=tuple(map(base_name_of, references))).narinfo,
            url=path,
            compression="xz",
            file_hash=NixHash(hashlib.sha256(nar).digest()),
            file_size=size,
        )
        return path

    def path_of(self, name: str) -> str:
        return self.narinfos[hash_part_of(name)].url

    @property
    def asked_nars(self) -> list[str]:
        return [path for path in self.asked if path.startswith("nar/")]

    @property
    def asked_narinfos(self) -> list[str]:
        return [path.removesuffix(".narinfo") for path in self.asked if path.endswith(".narinfo")]

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until a condition holds of what was asked and answered."""
        async with asyncio.timeout(_MOST_SECONDS), self._changed:
            await self._changed.wait_for(is_so)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path[1:]
        self.asked.append(path)
        if path.endswith(".narinfo"):
            await self._tell()
            narinfo = self.narinfos.get(path.removesuffix(".narinfo"))
            status = self.statuses.get(path, 200 if narinfo is not None else 404)
            return web.Response(status=status, text=narinfo.render() if narinfo and status == 200 else "")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self._tell()
            await self.gate.wait()
        finally:
            self.under_way -= 1
            await self._tell()
        status = self.statuses.get(path, self.statuses.get("nar", 200 if path in self.nars else 404))
        body = self.wrong.get(path, self.nars.get(path, b""))
        return web.Response(status=status, body=body if status == 200 else b"")

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def far_cache() -> AsyncIterator[FarCache]:
    """Serve one that is empty, and answers at once."""
    cache = FarCache()
    cache.gate.set()
    async with serve(cache.answer, cancels=True) as cache.url:
        yield cache


class Near:
    """A client of a proxy."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        async with self._session.request(method, f"{self.url}/{path}", headers=headers) as answer:
            return answer.status, await answer.read()

    async def narinfo(self, name: str) -> NarInfo:
        status, body = await self.get(f"{hash_part_of(name)}.narinfo")
        assert status == 200, name
        return NarInfo.parse(body)

    async def look(self, wanted: Sequence[str]) -> dict[str, str]:
        """Ask for narinfos, in order; returns the URLs of the NARs."""
        return {name: (await self.narinfo(name)).url for name in wanted}

    async def nar(self, url: str) -> bytes:
        status, body = await self.get(url)
        assert status == 200
        return body

    async def status(self) -> dict[str, Any]:
        _, body = await self.get("_status")
        status: dict[str, Any] = json.loads(body)
        return status

    async def counters(self) -> dict[str, int]:
        counters: dict[str, int] = (await self.status())["counters"]
        return counters


@asynccontextmanager
async def near(folder: Path, *caches: FarCache, **changes: Any) -> AsyncIterator[Near]:  # noqa: ANN401  of any field
    """Serve a proxy that has these for upstreams; gives a client of it."""
    config = proxy_config(folder, upstreams=tuple(cache.url for cache in caches), **changes)
    async with (
        serving(config, [ConfiguredCache(Layout(folder / "none"))]) as [url],
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield Near(url, session)


async def settle(near: Near) -> None:
    """Let all begin that would."""
    for _ in range(5):
        await let_run()
        await near.get("health")
