"""What several files take: a layout, a double of GHCR, and answers without a server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
from aioresponses import aioresponses

from nixcache_oci.clients.http import client, session
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.repository import Repository
from tests.clients.nix_story import NixStory
from tests.clients.registry_helper import opened, owner
from tests.support.ghcr import GhcrDouble
from tests.support.tls import Authority, make_authority


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "layout"


@pytest.fixture
def layout(root: Path) -> Repository:
    return Layout(root)


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        yield double


@pytest.fixture(params=["aiohttp", "libcurl"])
def _transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small answers come over each: in use, libcurl is for TLS only."""
    schemes = {"http", "https"} if request.param == "libcurl" else set[str]()
    monkeypatch.setattr(client, "_SHARING_SCHEMES", frozenset(schemes))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[aioresponses]:
    with aioresponses() as answers:
        # aiohttp wants a stream_writer from 3.14 on, which aioresponses 0.7.9 does not know of.
        response: Any = partial(aiohttp.ClientResponse, stream_writer=Mock(output_size=0))
        monkeypatch.setattr(answers, "add", partial(answers.add, response_class=response))
        yield answers


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were to be slept; nobody sleeps."""
    seconds: list[float] = []
    sleep = asyncio.sleep

    async def note(delay: float) -> None:
        seconds.append(delay)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return seconds


@pytest.fixture
def story(tmp_path: Path) -> NixStory:
    return NixStory(tmp_path)


@pytest.fixture
async def registry(ghcr: GhcrDouble) -> AsyncIterator[Registry]:
    """The double's owner, who reads."""
    async with opened(ghcr.host, owner(ghcr)) as registry:
        yield registry


@pytest.fixture
async def pusher(ghcr: GhcrDouble) -> AsyncIterator[Registry]:
    """The double's owner, who pushes."""
    async with opened(ghcr.host, owner(ghcr), push=True) as registry:
        yield registry


@pytest.fixture
async def stranger(web: aioresponses) -> AsyncIterator[Registry]:
    """Nobody, at a registry whose answers ``web`` gives."""
    del web
    async with opened("registry.example", None) as registry:
        yield registry


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A file of more bytes than the sockets' buffers take."""
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    return path


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Authority]:
    """Trusted as a user says."""
    made = make_authority(tmp_path)
    monkeypatch.setenv("NIX_SSL_CERT_FILE", str(made.file))
    session._read.cache_clear()
    yield made
    session._read.cache_clear()
