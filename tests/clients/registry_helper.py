"""Registries under test: clients with little patience, closed at the end of the test."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aioresponses import aioresponses

from nixcache_oci.clients.credentials import Credentials, CredentialSource
from nixcache_oci.clients.http.public_address import IsPublic, is_public
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.repository import Repository
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference
from tests.support.ghcr import GhcrDouble

NAME = "octocat/hello/nix-cache"
MANIFEST = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[]}'


@asynccontextmanager
async def opened(
    host: str,
    credentials: CredentialSource | None,
    *,
    push: bool = False,
    delete: bool = False,
    plain_http: bool = True,
    patience: float = 3,
    stall: float = 1.5,
    first_backoff: float = 0.01,
    is_public: IsPublic = is_public,
) -> AsyncIterator[Registry]:
    """Make a client that gives up within seconds, and close it behind the block."""
    registry = Registry(
        RegistryReference(host, plain_http=plain_http, repository=NAME),
        credentials,
        push=push,
        delete=delete,
        patience=patience,
        stall_seconds=stall,
        first_backoff_seconds=first_backoff,
        is_public=is_public,
    )
    try:
        yield registry
    finally:
        await registry.close()


def owner(ghcr: GhcrDouble) -> Credentials:
    """Credentials that may do everything."""
    return Credentials("anyone", ghcr.token, "GITHUB_TOKEN", is_ambient=True)


def reader(ghcr: GhcrDouble) -> Credentials:
    """Credentials that may read."""
    return Credentials("anyone", ghcr.read_token, "GH_TOKEN", is_ambient=True)


async def read(
    repository: Repository,
    digest: Digest,
    start: int = 0,
    end: int | None = None,
    *,
    each: Callable[[bytes], None] = lambda _: None,
) -> bytes:
    """Read a blob, or a part, at once."""
    content = bytearray()
    async with repository.open_blob(digest, start, end) as blob:
        async for chunk in blob.chunks:
            each(chunk)
            content += chunk
        assert blob.end - blob.start == len(content)
    return bytes(content)


def sent(web: aioresponses, url: str, method: str = "GET") -> list[str | None]:
    """Give the Authorization of each request for a URL that begins so."""
    return [
        call.kwargs["headers"].get("Authorization")
        for (each, target), calls in web.requests.items()
        if each == method and str(target).startswith(url)
        for call in calls
    ]


def count(web: aioresponses, url: str, method: str = "GET") -> int:
    """Count them."""
    return len(sent(web, url, method))
