"""A connection to the storage is opened while the registry is still asked, and it is the one that is used."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import pytest
from aiohttp import web

from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import opened, read
from tests.support.process import until

_CONTENT = b"what lies in the storage"
_BLOB = Digest.of(_CONTENT)


class _Origin:
    """A server in this loop that counts its connections.

    Attributes:
        host: ``host:port``.
        opened: connections, so far.
    """

    def __init__(self) -> None:
        self.host = ""
        self.opened = 0
        self._server = web.Server(self._answer)

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        self.host = "{}:{}".format(*self._listening.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        await self._server.shutdown(0.1)

    @property
    def open(self) -> int:
        """How many connections there are now."""
        return len(self._server.connections)

    def _accept(self) -> asyncio.Protocol:
        self.opened += 1
        return self._server()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        raise NotImplementedError


class _Storage(_Origin):
    """Gives the blob, and then closes the connection: the next request needs a new one."""

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        del request
        response = web.Response(body=_CONTENT)
        response.force_close()
        return response


class _Registry(_Origin):
    """Redirects to a storage, when it may.

    Attributes:
        target: where to; None where it has the blob itself.
        token: what it wants to see, if anything; it issues that, too, for no time at all.
        may_answer: answers wait for it.
    """

    def __init__(self, target: str | None) -> None:
        super().__init__()
        self.target = target
        self.token: str | None = None
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        await self.may_answer.wait()
        if request.path == "/token":
            return web.json_response({"token": self.token, "expires_in": 1e-9})
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            challenge = f'Bearer realm="http://{self.host}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if self.target is None:
            return web.Response(body=_CONTENT)
        return web.Response(status=307, headers={"Location": f"http://{self.target}/signed"})


@asynccontextmanager
async def _places() -> AsyncIterator[tuple[_Registry, _Storage]]:
    async with _Storage() as storage, _Registry(storage.host) as registry:
        yield registry, storage


@pytest.mark.parametrize("count", [1, 3])
async def test_the_connection_is_open_before_the_redirect_is_told(count: int) -> None:
    """What a first redirect taught, the next use: a connection each, as without; none waits for another's."""
    async with _places() as (registry, storage), opened(registry.host, None) as client:
        assert await read(client, _BLOB) == _CONTENT
        assert storage.opened == 1
        await until(lambda: storage.open == 0)
        registry.may_answer.clear()
        reading = [asyncio.create_task(read(client, _BLOB)) for _ in range(count)]
        await until(lambda: storage.open == count)
        registry.may_answer.set()
        assert await asyncio.gather(*reading) == [_CONTENT] * count
        assert storage.opened == 1 + count


async def test_who_waits_for_a_token_has_a_connection_for_what_comes_then() -> None:
    """The token comes over the connection that is there, and who asked for it goes on with that one."""
    async with _places() as (registry, storage), opened(registry.host, None) as client:
        registry.token = "issued"
        await read(client, _BLOB)
        await until(lambda: storage.open == 0)
        assert registry.open == 1
        registry.may_answer.clear()
        reading = [asyncio.create_task(read(client, _BLOB)) for _ in range(3)]
        await until(lambda: registry.open == 3)
        registry.may_answer.set()
        assert await asyncio.gather(*reading) == [_CONTENT] * 3
        assert registry.opened == 3


async def test_a_registry_that_stopped_to_redirect_is_taken_at_its_word() -> None:
    """The requests after one that was answered directly open no connection ahead."""
    async with _places() as (registry, storage), opened(registry.host, None) as client:
        await read(client, _BLOB)
        registry.target = None
        await read(client, _BLOB)
        opened_before = storage.opened
        registry.may_answer.clear()
        reading = [asyncio.create_task(read(client, _BLOB)) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert storage.opened == opened_before
        registry.may_answer.set()
        assert await asyncio.gather(*reading) == [_CONTENT] * 2


async def test_a_redirect_to_somewhere_else_is_followed() -> None:
    """The guess may be wrong, and then it does not matter what became of it."""
    async with _Registry(None) as registry, _Storage() as other, opened(registry.host, None) as client:
        async with _Storage() as storage:
            registry.target = storage.host
            await read(client, _BLOB)
        registry.target = other.host
        assert await read(client, _BLOB) == _CONTENT
        assert other.opened == 1


async def test_a_storage_that_is_gone_is_told_like_any_other() -> None:
    """The error names what could not be reached, and the next request tries again."""
    async with _Registry(None) as registry, opened(registry.host, None, patience=0.1) as client:
        async with _Storage() as storage:
            registry.target = storage.host
            await read(client, _BLOB)
        with pytest.raises(RegistryError, match=f"no connection to {storage.host}: Connect"):
            await read(client, _BLOB)
        registry.target = None
        assert await read(client, _BLOB) == _CONTENT


async def test_giving_up_ends_the_connection() -> None:
    """Nobody stays connected to a storage for a request that was cancelled."""
    async with _places() as (registry, storage), opened(registry.host, None) as client:
        await read(client, _BLOB)
        await until(lambda: storage.open == 0)
        registry.may_answer.clear()
        reading = asyncio.create_task(read(client, _BLOB))
        await until(lambda: storage.open == 1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        registry.may_answer.set()
        await client.close()
        await until(lambda: storage.open == 0)


async def test_through_an_http_proxy_nothing_is_opened_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has to go through a proxy goes nowhere else."""
    async with _places() as (registry, storage):
        monkeypatch.setenv("http_proxy", f"http://{storage.host}")
        monkeypatch.setenv("no_proxy", registry.host)
        registry.target = "storage.example:80"  # only the proxy can tell where that is
        async with opened(registry.host, None) as client:
            await read(client, _BLOB)
            await until(lambda: storage.open == 0)
            registry.may_answer.clear()
            reading = asyncio.create_task(read(client, _BLOB))
            await asyncio.sleep(0.1)
            assert storage.opened == 1
            registry.may_answer.set()
            assert await reading == _CONTENT
