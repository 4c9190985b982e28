"""Conversations with the proxy, made up at random, and whether its front changes anything about them."""

import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from hypothesis import strategies as st

from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy import app_keys
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from tests.support.front import Bench, Client, make_bench
from tests.support.packs import PackedCache

LAST: Final = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

_HARMLESS: Final = (
    *(b"User-Agent: curl/7.88.1 Nix/2.8.0\r\n", b"Accept: */*\r\n"),
    *(b"Accept-Encoding: deflate, gzip, br, zstd\r\n", b"Connection: keep-alive\r\n"),
)
FIELDS: Final = (
    *_HARMLESS,
    *(b"Host: localhost\r\n", b"hOST:127.0.0.1:37515\t\r\n", b"Host: evil.example\r\n"),
    *(b"Host:\r\n", b"Connection: close\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
    *(b"Connection: keep-alive, x\r\n", b"Range: bytes=1-2\r\n", b"Range: bytes=0-\r\n"),
    *(b"Range: bytes=-3\r\n", b"Range: bytes=99999999-\r\n", b"Range: bytes=1-2, 4-5\r\n"),
    *(b"Range: bytes=1-2\r\nIf-Range: x\r\n", b"If-None-Match: *\r\n"),
    *(b"Authorization: Basic eA==\r\n", b"Expect: 100-continue\r\n", b"Content-Length: 0\r\n"),
    *(b"Content-Length: -1\r\n", b"Content-Length: 5\r\nContent-Length: 6\r\n"),
    *(b"Transfer-Encoding: chunked, x\r\n", b"Upgrade: h2c\r\n", b"X: " + b"y" * 5000 + b"\r\n"),
    *(b"X: " + b"y" * 9000 + b"\r\n", b"X: \xff\r\n", b"X: \x00\r\n", b"X : y\r\n"),
    *(b"X: folded\r\n here\r\n", b"no colon\r\n", b"X: y\n", b": z\r\n"),
    b"X-" + b"y\r\nX-".join([b"%d: z" % number for number in range(150)]) + b"\r\n",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a client says.

    Attributes:
        requests: one after another, malformed ones among them.
        cuts: where the stream of them is cut into pieces, in bytes.
        is_bytewise: whether it is cut everywhere instead.
    """

    requests: Sequence[bytes]
    cuts: Sequence[int] = ()
    is_bytewise: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        received: all answers, but for what may differ.
        is_closed: whether the proxy ended the connection.
        counters: of the proxy.
        log: method, path and status of each answer.
        packs: for each, whether it is at hand.
    """

    received: bytes
    is_closed: bool
    counters: Counters
    log: list[object]
    packs: list[bool]


def conversations(
    plain_targets: Sequence[str], odd_targets: Sequence[str]
) -> st.SearchStrategy[Conversation]:
    """Make up conversations.

    Args:
        plain_targets: what most requests ask for, plainly.
        odd_targets: what others ask for beside them.
    """
    plain = st.builds(
        lambda method, target, field: (
            f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n".encode() + field + b"\r\n"
        ),
        st.sampled_from(["GET", "GET", "HEAD"]),
        st.sampled_from(plain_targets),
        st.sampled_from([b"", *_HARMLESS]),
    )
    odd = st.builds(
        lambda before, method, target, version, fields: (
            before + f"{method} {target} {version}\r\n".encode() + b"".join(fields) + b"\r\n"
        ),
        st.sampled_from([b"", b"", b"", b"\r\n", b"\n"]),
        st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "get", "G@T", "OPTIONS", "CONNECT"]),
        st.sampled_from([*plain_targets, *odd_targets]),
        st.sampled_from(
            ["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/1.2", "http/1.1", ""]
        ),
        st.lists(st.sampled_from(FIELDS), max_size=4),
    )
    host, target = b" HTTP/1.1\r\nHost: localhost\r\n", plain_targets[0].encode()
    hidden = b"GET " + target + host + b"\r\n"
    length = f"Content-Length: {len(hidden)}\r\n\r\n".encode()
    with_body = st.sampled_from(
        [
            b"POST " + target + host + length + hidden,
            b"GET " + target + host + length + hidden,
            b"GET " + target + host + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"GET " + target + b" HTTP/1.1\nHost: localhost\n\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        ]
    )
    return st.builds(
        Conversation,
        st.lists(st.one_of(plain, plain, plain, odd, with_body), min_size=1, max_size=6),
        st.lists(st.integers(0, 2000), max_size=8),
        st.booleans(),
    )


async def both_ways(
    cache: PackedCache,
    index: LiveIndex,
    conversation: Conversation,
    prepare: Callable[[Bench], Awaitable[None]],
) -> tuple[Outcome, Outcome]:
    """Have a conversation with the HTTP library alone, and then with the front, each with a new proxy.

    The library is given one request after the other, up to the one that ends the connection, or that would
    have another protocol. That one comes in a piece of its own, after all answers before it: the library
    forgets the requests that it got in one piece with a malformed one, or behind one for another protocol;
    and what waited in the front may come to it as one piece.

    Args:
        cache: to serve.
        index: of the cache.
        conversation: to have; a request that ends the connection is added.
        prepare: brings the proxy into the state that it is to begin in.
    """
    taken: list[bytes] = []
    with _logged_answers() as log:
        async with make_bench(cache.folder, index) as bench, bench.connect(with_front=False) as client:
            await prepare(bench)
            for request in [*conversation.requests, LAST]:
                if client.is_closed or (taken and b"upgrade:" in taken[-1].lower()):
                    break
                taken.append(request)
                await client.send(request)
                await client.settle()
            alone = _outcome(bench, client, log, cache.packs)
    sent = b"".join(taken)
    places = range(len(sent)) if conversation.is_bytewise and len(sent) < 1500 else conversation.cuts
    with _logged_answers() as log:
        async with make_bench(cache.folder, index) as bench, bench.connect() as client:
            await prepare(bench)
            last = len(sent) - len(taken[-1])
            for piece in _cut(sent[:last], places):
                await client.send(piece)
            if taken[-1] != LAST:
                await client.settle()
            for piece in _cut(sent[last:], [place - last for place in places]):
                await client.send(piece)
            await client.settle()
            return alone, _outcome(bench, client, log, cache.packs)


def _outcome(bench: Bench, client: Client, log: list[object], packs: Sequence[Digest]) -> Outcome:
    return Outcome(
        _comparable(client.received),
        client.is_closed,
        bench.app[app_keys.CACHES].totals(),
        list(log),
        [bench.cache.packs.cached(pack, 0, 1) is not None for pack in packs],
    )


def _cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *(place for place in sorted(places) if 0 < place < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start < end]


def _comparable(received: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]*", b"Date:", received)


class _Answers(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.fields: list[object] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg == "answered":
            self.fields.append(vars(record)["fields"])


@contextmanager
def _logged_answers() -> Iterator[list[object]]:
    logger, handler = logging.getLogger("nixcache_oci.proxy.front.connection"), _Answers()
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield handler.fields
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
