"""A proxy process with something to serve, and an upstream that remembers what it was asked."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pytest
from aiohttp import web

from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.nix.narinfo import NarInfo
from tests.reliability.results import Cell, write_suite
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import publish
from tests.support.server_thread import ServerThread
from tests.support.upstream_server import narinfo_text

CLIENT_GROUPS: Final = 14
DATA_GROUPS: Final = 13

_CLIENTS: Final = (
    "A proxy process, and clients that say anything to it. After each, the next well-formed request is"
    " answered as ever; at the end the log holds no traceback."
)
_DATA: Final = (
    "What a registry, an upstream or a NAR can hold. The proxy serves what is right beside it, and readers"
    " refuse it with one line."
)


class Tally:
    """Collects outcomes; a group counts once all of it was tried."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Counter[str]] = {}
        self.cells: list[Cell] = []

    def add(self, group: str, outcome: str, total: int = 1, *, times: int = 1) -> None:
        """Note one outcome.

        Args:
            group: what was tried.
            outcome: what came of it.
            total: how many outcomes the group has when it is complete.
            times: how often one of them was tried.
        """
        outcomes = self._outcomes.setdefault(group, Counter())
        outcomes[outcome] += 1
        if outcomes.total() == total:
            said = [f"{outcome} ({count})" for outcome, count in outcomes.most_common()]
            self.cells.append(Cell(group, total * times, "; ".join(said) if len(said) > 1 else outcome))


@pytest.fixture(scope="session")
def clients() -> Iterator[Tally]:
    """Results of hostile clients."""
    tally = Tally()
    yield tally
    write_suite(50, "Hostile clients", _CLIENTS, CLIENT_GROUPS, tally.cells)


@pytest.fixture(scope="session")
def data() -> Iterator[Tally]:
    """Results of hostile data."""
    tally = Tally()
    yield tally
    write_suite(60, "Hostile data", _DATA, DATA_GROUPS, tally.cells)


SMALL: Final = store_object("small")
LARGE: Final = store_object("large", contents=bytes(range(256)) * 5000)
UPSTREAM_NAR: Final = bytes(range(256)) * 40
KNOWN: Final = hash_part_of("upstream")
"""The one hash part that the upstream knows."""

MOST_MEMORY_BYTES: Final = 400_000_000
"""Resident, of a proxy under attack."""

MOST_BLOCKED_SECONDS: Final = 0.5
"""Of CPU, between two turns of the loop: a tenth of a second, on a machine that is five times slower."""

MOST_ANSWER_SECONDS: Final = 5.0
"""To ``/health``: one second, on a machine that is five times slower."""


@dataclass(slots=True)
class Upstream:
    """An upstream below ``/base/``.

    Attributes:
        asked: targets as they came, in order.
        url: its base.
    """

    asked: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def key(self) -> str:
        return parse_upstream(self.url).key

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked.append(request.raw_path)
        if request.raw_path == f"/base/{KNOWN}.narinfo":
            return web.Response(text=narinfo_text(KNOWN, "nar/known.nar"))
        if request.raw_path != "/base/nar/known.nar":
            return web.Response(status=404)
        headers = {"Accept-Ranges": "bytes", "ETag": '"1"'}
        part = request.http_range
        if part.start is None and part.stop is None:
            return web.Response(body=UPSTREAM_NAR, headers=headers)
        start, end, _ = part.indices(len(UPSTREAM_NAR))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(UPSTREAM_NAR)}"
        return web.Response(status=206, body=UPSTREAM_NAR[start:end], headers=headers)


@pytest.fixture(scope="module")
def blobs_upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    server = ServerThread(upstream.answer)
    server.start()
    upstream.url = f"http://127.0.0.1:{server.ports[0]}/base"
    yield upstream
    server.stop()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, blobs_upstream: Upstream) -> Iterator[ProxyProcess]:
    """Serves a slice of a pack, a blob, and an upstream; afterwards it must be as well as before."""
    folder = tmp_path_factory.mktemp("hostile")

    async def fill() -> None:
        await publish(Layout(folder / "cache"), [SMALL])
        await publish(Layout(folder / "cache"), [LARGE], in_packs=False)

    asyncio.run(fill())
    with ProxyProcess(
        folder / "proxy", NIXCACHE_REGISTRY=f"oci:{folder}/cache", NIXCACHE_UPSTREAM=blobs_upstream.url
    ) as running:
        running.wait_ready()
        yield running
        check_well(running)


def check_well(proxy: ProxyProcess) -> None:
    """Both ways through the proxy work, and nothing unexpected was logged."""
    assert proxy.ask(f"/{hash_part_of('small')}.narinfo").status == 200
    assert proxy.ask("/health").body == b"ok\n"
    assert "Traceback" not in proxy.log
    assert "unexpected" not in proxy.log


def url_of(proxy: ProxyProcess, seed: str) -> str:
    """Where the NAR of an object lies."""
    return NarInfo.parse(proxy.ask(f"/{hash_part_of(seed)}.narinfo").body).url
