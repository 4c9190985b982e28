"""HTTP requests to upstreams: sessions, redirects, and the one place that translates the library's errors."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Final

import aiohttp
from yarl import URL

from nixcache_oci.clients.http.errors import FOREIGN_ERRORS, SlowBodyError, show
from nixcache_oci.clients.http.fresh import Freshness, send_fresh
from nixcache_oci.clients.http.proxy import find_proxy
from nixcache_oci.clients.http.public_address import (
    IsPublic,
    guard_sockets,
    is_known_private,
    spells_private,
)
from nixcache_oci.clients.http.session import open_session, peer_of, tls_context
from nixcache_oci.clients.upstream.address import Upstream, origin
from nixcache_oci.clients.upstream.redirect import MOST_REDIRECTS, REDIRECT_STATUSES, next_url
from nixcache_oci.errors import FormatError, UpstreamConnectionError, UpstreamError, UsageError

NAME_SECONDS: Final = 15.0
"""For a name look-up: where the first of its servers is dead, the system waits 5 s for it, twice at worst."""

AGAIN_SECONDS: Final = 30.0

# A connection that could not be made, or that broke before or within the answer.
_CONNECTION_ERRORS = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)


@contextmanager
def translated(upstream: Upstream) -> Iterator[None]:
    """Turn whatever goes wrong with an upstream into UpstreamError, in one line that can be shown.

    Raises:
        UpstreamError: instead.
    """
    try:
        yield
    except UsageError as error:  # the HTTP proxy that the environment names
        raise UpstreamError(f"upstream {upstream}: {error}") from None
    except UpstreamError as error:
        text = show(str(error))
        if text == str(error):
            raise
        raise type(error)(text) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise UpstreamConnectionError(f"upstream {upstream}: no connection in time") from error
    except SlowBodyError as error:
        raise UpstreamError(f"upstream {upstream}: the answer comes too slowly: {error}") from error
    except TimeoutError as error:
        raise UpstreamConnectionError(f"upstream {upstream}: no answer in time") from error
    except aiohttp.ClientResponseError as error:  # its text holds the URL, which may be signed
        raise UpstreamError(f"upstream {upstream}: no HTTP: {show(error.message)}") from None
    except aiohttp.InvalidURL:
        raise UpstreamError(f"upstream {upstream}: leads to an address that is none") from None
    except (FormatError, *FOREIGN_ERRORS) as error:
        reason = show(str(error)) or type(error).__name__
        kind = UpstreamConnectionError if isinstance(error, _CONNECTION_ERRORS) else UpstreamError
        raise kind(f"upstream {upstream}: {reason}") from error


class Wire:
    """Sends requests; needs a running event loop from the first one on.

    Args:
        connect_seconds: limit for TCP and TLS together, for each connection; to look its name up may take
            NAME_SECONDS more.
        is_public: which IP addresses a redirect may lead to, where the upstream answered from such a one.
    """

    def __init__(self, *, connect_seconds: float, is_public: IsPublic) -> None:
        self._connect_seconds = connect_seconds
        self._is_public = is_public
        self._freshness = Freshness()
        self._session: aiohttp.ClientSession | None = None
        self._guarded: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        for session in (self._session, self._guarded):
            if session is not None:
                await session.close()
        self._session = self._guarded = None

    async def send(
        self,
        upstream: Upstream,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        head_seconds: float | None,
        stall_seconds: float | None,
        on_connect: Callable[[], None],
        again_seconds: float = AGAIN_SECONDS,
    ) -> aiohttp.ClientResponse:
        """Send a request without a body, and follow redirects.

        Credentials go to the upstream's own origin only. Once an answer came from a public address, whatever
        it leads to must be public as well.

        Args:
            upstream: whose business this is.
            method: GET or HEAD.
            url: where to, on the upstream's own origin.
            headers: further request headers; they go with redirects.
            head_seconds: limit for all heads together, from here to the end of the last one.
            stall_seconds: limit for each wait for bytes.
            on_connect: called when the upstream itself was reached.
            again_seconds: see ``send_fresh``.

        Returns:
            the answer with its body unread, for the caller to close.

        Raises:
            UpstreamError: none came, or a redirect was refused.
        """
        own_headers = (
            {**headers, "Authorization": upstream.authorization} if upstream.authorization else headers
        )
        is_guarded = False
        with translated(upstream):
            async with asyncio.timeout(head_seconds):
                for _ in range(MOST_REDIRECTS + 1):
                    if is_guarded and spells_private(url, self._is_public):
                        raise UpstreamError(
                            f"upstream {upstream}: redirect to the private address {url.raw_host} refused"
                        )
                    response = await self._request(
                        method,
                        url,
                        headers=own_headers if origin(url) == origin(upstream.base) else headers,
                        is_guarded=is_guarded,
                        stall_seconds=stall_seconds,
                        on_connect=on_connect,
                        again_seconds=again_seconds,
                    )
                    if response.status not in REDIRECT_STATUSES:
                        return response
                    response.release()
                    is_guarded |= not is_known_private(peer_of(response), url, self._is_public)
                    url = next_url(url, response.headers.get("Location", ""))
        raise UpstreamError(f"upstream {upstream}: more than {MOST_REDIRECTS} redirects")

    async def _request(
        self,
        method: str,
        url: URL,
        *,
        headers: Mapping[str, str],
        is_guarded: bool,
        stall_seconds: float | None,
        on_connect: Callable[[], None],
        again_seconds: float,
    ) -> aiohttp.ClientResponse:
        proxy = find_proxy(url)
        to_proxy = {"Proxy-Authorization": proxy.authorization} if proxy and proxy.authorization else {}
        # a proxy resolves names itself, in its own network: there is no address for a guard to see
        session = self._guarded_session() if is_guarded and proxy is None else self._open_session()
        send = partial(
            session.request,
            method,
            url,
            # plain HTTP goes through the proxy as it is; for https the proxy has a request of its own
            headers={**headers, **to_proxy} if url.scheme == "http" else headers,
            allow_redirects=False,
            proxy=proxy.url if proxy else None,
            proxy_headers=to_proxy if url.scheme == "https" else None,
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=NAME_SECONDS + self._connect_seconds,
                sock_connect=self._connect_seconds,
                sock_read=stall_seconds,
            ),
            trace_request_ctx=on_connect,
        )
        return await send_fresh(self._freshness, send, again_seconds=again_seconds)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = _make_session(aiohttp.TCPConnector(limit=0, ssl=tls_context()))
        return self._session

    def _guarded_session(self) -> aiohttp.ClientSession:
        # apart from the other, whose idle connections may lead to private addresses
        if self._guarded is None:
            guard = guard_sockets(self._is_public)
            self._guarded = _make_session(
                aiohttp.TCPConnector(limit=0, ssl=tls_context(), socket_factory=guard)
            )
        return self._guarded


def _make_session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(_tell_connected)
    trace.on_connection_reuseconn.append(_tell_connected)
    return open_session(connector, traces=[trace])


async def _tell_connected(_session: aiohttp.ClientSession, context: SimpleNamespace, _event: object) -> None:
    context.trace_request_ctx()
