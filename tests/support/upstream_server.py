"""Upstream binary caches for tests: real servers on a free loopback port."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import chain, cycle
from typing import TypedDict, Unpack

from aiohttp import web
from multidict import CIMultiDictProxy

from nixcache_oci.clients.upstream.address import UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.narinfo_store import NarinfoStore
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart

HASH_PART = HashPart("0123456789abcdfghijklmnpqrsvwxyz")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Options(TypedDict, total=False):
    """Arguments of the client, as it names them."""

    signer: UrlSigner
    connect_seconds: float
    answer_seconds: float
    nar_seconds: float
    stall_seconds: float
    resume_pause_seconds: float
    clock: Callable[[], float]
    is_public: Callable[[str], bool]
    store_dir: str | None
    client_keys: tuple[PublicKey, ...]
    store: NarinfoStore
    name: str


def narinfo_text(hash_part: str = HASH_PART, url: str = "nar/hello.nar.zst") -> str:
    return (
        f"StorePath: /nix/store/{hash_part}-hello-2.12\n"
        f"URL: {url}\n"
        "Compression: zstd\n"
        f"NarHash: sha256:{'0' * 52}\n"
        "NarSize: 120\n"
        "References: \n"
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as a server saw it, with the address that it came from."""

    method: str
    path: str
    headers: CIMultiDictProxy[str]
    peer: object


def answering(
    *,
    status: int = 200,
    text: str = "",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = 0.0,
    asked: list[Asked] | None = None,
) -> Handler:
    """Make a handler that gives one answer to everything, and notes what it was asked."""

    async def handle(request: web.Request) -> web.Response:
        if asked is not None:
            peer = request.transport and request.transport.get_extra_info("peername")
            asked.append(Asked(request.method, request.raw_path, request.headers, peer))
        await asyncio.sleep(seconds)
        return web.Response(status=status, body=text.encode() if body is None else body, headers=headers)

    return handle


def saying(
    *steps: bytes | float,
    again: Sequence[bytes | float] = (),
    sent: list[int] | None = None,
    ended: asyncio.Event | None = None,
) -> Talk:
    """Take a request, and follow a script: bytes are sent, seconds waited.

    Args:
        steps: of the script, behind which the server hangs up.
        again: unless these follow, again and again.
        sent: notes how many bytes went out, piece by piece.
        ended: is set when the connection is over.
    """

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for step in chain(steps, cycle(again)):
                if isinstance(step, bytes):
                    writer.write(step)
                    if sent is not None:
                        sent.append(len(step))
                    await writer.drain()
                await asyncio.sleep(0 if isinstance(step, bytes) else step)
        finally:
            if ended is not None:
                ended.set()

    return converse


silent: Talk = saying(again=[0.01, b""])


@asynccontextmanager
async def serve(
    handler: Handler,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    *,
    cancels: bool = False,
) -> AsyncIterator[str]:
    """Serve HTTP, over TLS where there is a certificate for it; gives the base URL.

    Where it ``cancels``, a client that goes away ends what is done for it.
    """
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.05, handler_cancellation=cancels)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, ssl_context=tls)
        await site.start()
        yield f"http{'s' if tls else ''}://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def talk(
    conversation: Talk, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve whatever a function says on each connection, over TLS if told; gives the base URL."""

    conversations: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        try:
            await conversation(reader, writer)
            writer.close()
            await writer.wait_closed()  # everything said was sent
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client has gone, which is the story of some tests, or the test is over
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(converse, host, 0, ssl=tls)
    try:
        yield f"http{'s' if tls else ''}://{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted transport closes its socket in the loop's next turn


@contextmanager
def unreachable() -> Iterator[str]:
    """Listen, never accept, and fill the queue, so that connecting takes for ever; gives the base URL."""
    with ExitStack() as sockets:
        listening = sockets.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            filler = sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def refusing() -> str:
    """Name the base URL of a port where nobody listens."""
    with socket.socket() as once:
        once.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{once.getsockname()[1]}"


@asynccontextmanager
async def asking(*urls: str, **options: Unpack[Options]) -> AsyncIterator[Upstreams]:
    """Make a client of these upstreams."""
    upstreams = Upstreams([parse_upstream(url) for url in urls], **options)
    try:
        yield upstreams
    finally:
        await upstreams.close()
