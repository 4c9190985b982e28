"""A proxy in this process, with the sample cache and whatever else a test wants beside it."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

import aiohttp
import pytest

from nixcache_oci.cache.record import Record
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.server import serving
from tests.support.front import proxy_config
from tests.support.sample_cache import KEY, publish_sample


class NamedLayout(Layout):
    """A layout that has the name of a repository at a registry, as most caches do."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder)
        self._shown_name = name

    @property
    def name(self) -> str:
        return self._shown_name


class Site:
    """The page of a proxy, as a browser asks for it."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def get(self, path: str, *, status: int = 200, **headers: str) -> str:
        sent = {"Accept": "text/html,application/xhtml+xml", **headers}
        async with self.session.get(f"{self.url}{path}", headers=sent, allow_redirects=False) as answer:
            assert answer.status == status, await answer.text()
            return await answer.text()


class OpenSite(Protocol):
    def __call__(
        self,
        *repos: str,
        records: tuple[Record, ...] = (),
        keys: tuple[PublicKey, ...] = (KEY.public_key,),
        upstreams: tuple[str, ...] = (),
    ) -> AbstractAsyncContextManager[Site]: ...


@pytest.fixture
def open_site(tmp_path: Path) -> OpenSite:
    """Serve the sample cache under the names of some repositories."""

    @asynccontextmanager
    async def opened(
        *repos: str,
        records: tuple[Record, ...] = (),
        keys: tuple[PublicKey, ...] = (KEY.public_key,),
        upstreams: tuple[str, ...] = (),
    ) -> AsyncIterator[Site]:
        async with AsyncExitStack() as stack:
            caches = []
            for number, repo in enumerate(repos):
                repository = NamedLayout(tmp_path / f"cache{number}", f"ghcr.io/{repo}/nix-cache")
                stack.push_async_callback(repository.close)
                await publish_sample(repository, records=records)
                caches.append(ConfiguredCache(repository, repo, keys))
            config = proxy_config(tmp_path, upstreams=upstreams)
            [url] = await stack.enter_async_context(serving(config, caches))
            session = await stack.enter_async_context(aiohttp.ClientSession())
            async with session.post(f"{url}/_refresh") as refreshed:
                assert refreshed.status == 200
            yield Site(url, session)

    return opened


@pytest.fixture
async def site(open_site: OpenSite) -> AsyncIterator[Site]:
    async with open_site("example/project") as opened:
        yield opened
