"""How such proxies are usually written: local narinfos, and for each NAR one blob over a new connection."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

import aiohttp
from aiohttp import web

from nixcache_oci.oci.digest import Digest
from tests.support.registries import REPO, Ghcr
from tests.support.server_thread import ServerThread


@contextmanager
def naive_proxy(registry: Ghcr, host: str, cache: Path) -> Iterator[str]:
    """Serve a plain binary cache's folder, with the NARs from a registry; gives the base URL.

    Args:
        registry: where the NARs are put first.
        host: where it is asked.
        cache: has the narinfos, and the NARs under ``nar/``.
    """
    repository = f"{REPO}/nix-cache"
    blobs = {path.name: registry.server.put_blob(repository, path) for path in (cache / "nar").iterdir()}
    server = ServerThread(_NaiveProxy(registry, f"http://{host}", repository, cache, blobs).serve)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.ports[0]}"
    finally:
        server.stop()


class _NaiveProxy:
    def __init__(
        self, registry: Ghcr, url: str, repository: str, cache: Path, blobs: dict[str, Digest]
    ) -> None:
        self._credentials = aiohttp.BasicAuth(registry.user, registry.password)
        self._url = url
        self._repository = repository
        self._cache = cache
        self._blobs = blobs
        self._token = ""

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.path.startswith("/nar/"):
            file = self._cache / request.path.lstrip("/")
            return web.Response(body=file.read_bytes()) if file.is_file() else web.Response(status=404)
        response = web.StreamResponse()
        async with aiohttp.ClientSession() as session:
            answer = await self._get(session, request.path.removeprefix("/nar/"))
            if answer.status == HTTPStatus.UNAUTHORIZED:
                await self._renew_token(session)
                answer = await self._get(session, request.path.removeprefix("/nar/"))
            answer.raise_for_status()
            response.content_length = answer.content_length
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        return response

    async def _get(self, session: aiohttp.ClientSession, nar: str) -> aiohttp.ClientResponse:
        url = f"{self._url}/v2/{self._repository}/blobs/{self._blobs[nar]}"
        return await session.get(url, headers={"Authorization": f"Bearer {self._token}"})

    async def _renew_token(self, session: aiohttp.ClientSession) -> None:
        url = f"{self._url}/token?scope=repository:{self._repository}:pull"
        async with session.get(url, auth=self._credentials, raise_for_status=True) as answer:
            self._token = json.loads(await answer.read())["token"]
