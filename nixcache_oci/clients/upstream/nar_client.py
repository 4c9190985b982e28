"""Opens upstreams' NARs by the URLs that clients were given, even after the configuration has changed.

Nix remembers a narinfo with its URL for 30 days. The URL names an upstream by the key of its base URL, so an
upstream that is now spelled differently, or no longer configured, is remembered for as long, without its
credentials. A NAR that is named by a hash may come from any other upstream as well: Nix checks it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from yarl import URL

from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.reply import Reply
from nixcache_oci.clients.upstream.address import Upstream, UrlSigner, is_named_by_hash, nar_url
from nixcache_oci.clients.upstream.nar_stream import (
    NarBody,
    NarHead,
    NarStream,
    open_part,
    range_headers,
    read_head,
)
from nixcache_oci.clients.upstream.peer import Attempt, Peer
from nixcache_oci.clients.upstream.rules import ask, uniform_timeouts
from nixcache_oci.errors import FormatError, UpstreamError, UpstreamNotFoundError

_T = TypeVar("_T")


class NarClient:
    """Opens NARs at the configured upstreams and at former ones, by key; limits as of ``Upstreams``."""

    def __init__(
        self,
        http: HttpClient,
        peers: Mapping[str, Peer],
        former: Mapping[str, Peer],
        signer: UrlSigner,
        *,
        nar_seconds: float,
        stall_seconds: float,
        resume_pause_seconds: float,
    ) -> None:
        self._http = http
        self._peers = peers
        self._former = former
        self._signer = signer
        self._nar_seconds = nar_seconds
        self._limits = uniform_timeouts(stall_seconds)
        self._resume_pause_seconds = resume_pause_seconds

    @asynccontextmanager
    async def open(
        self,
        key: str,
        path: str,
        query: str,
        *,
        start: int,
        end: int | None,
        headers: Mapping[str, str],
        most_bytes: int | None = None,
    ) -> AsyncIterator[NarStream]:
        """Open a NAR, or the part from ``start`` to before ``end`` (None: its end), in bytes.

        A stream that breaks off is resumed if the upstream supports that. An upstream that cannot send parts
        sends the whole NAR: see the head's ``status``. ``path`` is what follows ``upstream/<key>/`` in a
        client's URL; both it and the query are as on the wire. ``most_bytes`` is that of ``HttpRequest``.

        Raises:
            UpstreamNotFoundError: no such upstream, NAR or part, or a path that no narinfo named.
            UpstreamError: no usable answer.
        """
        limits = replace(self._limits, head=self._nar_seconds, first=self._nar_seconds)

        async def open_at(peer: Peer, url: URL, attempt: Attempt) -> tuple[Upstream, URL, Reply, NarHead]:
            wanted = range_headers(start, end) | dict(headers)
            reply, head = await open_part(
                self._http, peer.upstream, url, limits, start, end, wanted, attempt.connected, most_bytes
            )
            return peer.upstream, url, reply, head

        upstream, url, reply, head = await self._first(key, path, query, open_at)

        async def reopen(start: int, end: int | None, validator: str) -> tuple[Reply, NarHead]:
            # bypasses the breaker: a server that restarts refuses connections for a moment
            wanted = range_headers(start, end, validator) | dict(headers)
            return await open_part(self._http, upstream, url, self._limits, start, end, wanted)

        body = NarBody(upstream, reply, head, reopen, self._resume_pause_seconds, self._limits.stall)
        try:
            async with aclosing(body.chunks()) as chunks:
                yield NarStream(head, chunks)
        finally:
            body.close()

    async def head(self, key: str, path: str, query: str, *, headers: Mapping[str, str]) -> NarHead:
        """Return the head that ``open`` would find; arguments and errors are the same."""

        async def ask_at(peer: Peer, url: URL, attempt: Attempt) -> NarHead:
            reply = await ask(
                self._http,
                peer.upstream,
                "HEAD",
                url,
                uniform_timeouts(self._nar_seconds),
                headers=headers,
                on_connect=attempt.connected,
            )
            reply.close()
            return read_head(peer.upstream, reply.status, reply.headers)

        return await self._first(key, path, query, ask_at)

    async def _first(
        self, key: str, path: str, query: str, ask: Callable[[Peer, URL, Attempt], Awaitable[_T]]
    ) -> _T:
        """Ask one upstream after another; if none has the NAR, the first one's error is raised."""
        first_error: UpstreamError | None = None
        for peer, url in self._locate(key, path, query):

            async def operation(attempt: Attempt, peer: Peer = peer, url: URL = url) -> _T:
                return await ask(peer, url, attempt)

            try:
                return await peer.attempt(None, operation)
            except UpstreamError as error:
                first_error = first_error or error
        raise first_error or UpstreamNotFoundError(f"no upstream has the key {key[:80]!r}")

    def _locate(self, key: str, path: str, query: str) -> Iterator[tuple[Peer, URL]]:
        """Yield where a NAR may be: at the upstream of that key, or, if that is gone, at others.

        Raises UpstreamNotFoundError if no narinfo named the path.
        """
        peer = self._peers.get(key)
        former = self._former.get(key)
        try:
            if peer is not None:
                has_password = bool(peer.upstream.authorization)
                named = self._signer.named_path(key, path, query, has_password=has_password)
                yield peer, nar_url(peer.upstream, named, query)
                return
            named = self._signer.named_path(key, path, query, has_password=former is None)
            # A stranger's narinfo named the path: an upstream with a password gets only what nobody guesses.
            is_by_hash = is_named_by_hash(named, query)
            others = tuple(self._peers.values())
            secured = [one for one in others if former and _is_secured(former.upstream, one.upstream)]
            for one in secured:
                if is_by_hash or not one.upstream.authorization:
                    yield one, nar_url(one.upstream, named, query)
            if former is not None:
                yield former, nar_url(former.upstream, named, query)
            for one in others:
                if is_by_hash and one not in secured:
                    yield one, nar_url(one.upstream, named, query)
        except FormatError as error:
            place = next((str(one.upstream) for one in (peer, former) if one is not None), repr(key[:80]))
            raise UpstreamNotFoundError(f"upstream {place}: {error}") from error


def _is_secured(former: Upstream, upstream: Upstream) -> bool:
    """Tell whether an upstream is the same as a former one, but over https instead of http."""
    return (
        (former.base.scheme, upstream.base.scheme) == ("http", "https")
        and former.base.raw_host == upstream.base.raw_host
        and former.base.raw_path == upstream.base.raw_path
        and (
            (former.base.is_default_port() and upstream.base.is_default_port())
            or former.base.port == upstream.base.port
        )
    )
