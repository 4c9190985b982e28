"""Asks upstream binary caches, in parallel, for what the cache lacks.

A look-up has three outcomes. Hit: an upstream has the narinfo. The first one signed by a trusted key wins;
until there is one, the others are waited for, and the signatures of equal narinfos are merged. Miss: every
upstream said so. Unknown, an UpstreamError: anything else, because Nix remembers a wrong miss for an hour.

Slower answers are read in the background, so that their connections can be reused.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext

from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.errors import show
from nixcache_oci.clients.http.public_address import IsPublic, is_public
from nixcache_oci.clients.upstream.address import (
    VIA,
    Chain,
    NarMode,
    Upstream,
    UrlSigner,
    is_loop,
    make_name,
    render_via,
)
from nixcache_oci.clients.upstream.nar_client import NarClient
from nixcache_oci.clients.upstream.nar_stream import NarHead, NarStream
from nixcache_oci.clients.upstream.narinfo_client import NarinfoClient
from nixcache_oci.clients.upstream.narinfo_store import NarinfoStore
from nixcache_oci.clients.upstream.peer import Peer, UpstreamHealth, UpstreamLoad
from nixcache_oci.clients.upstream.rules import NAME_SECONDS, ask, uniform_timeouts
from nixcache_oci.errors import UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.nix.variants import choose_variant

ASK_ON_SECONDS = 5.0
"""How long others are waited for after a hit that no trusted key signed. Upstreams that took longer are not
waited for like this during the next half minute."""
_SLOW_SECONDS = 30.0
MOST_LOSERS = 256
"""Look-ups that continue in the background; further ones are cancelled with their connections."""
_MOST_BYTES_OF_CODING = 64 * 1024  # that a Content-Encoding adds to a small NAR that it cannot compress
IDLE_SECONDS = 60.0
"""How long an unused connection is kept: the next burst needs no handshakes. Servers keep them for longer."""


class Upstreams:
    """Every configured upstream; methods need a running event loop.

    Args:
        upstreams: a base URL that is listed twice counts once.
        former: recent upstreams that are no longer configured, without credentials: they are only asked for
            NARs whose URLs clients remember.
        mode: where clients get NARs from.
        signer: makes and checks the NAR URLs for clients; None for one of this process alone.
        store_dir: of store paths; any other is a miss. None for any.
        client_keys: that clients are known to trust; None if any hit will do.
        store: keeps narinfos that they gave; closed with the client. None to ask for each anew.
        name: of this process, for loops.
        connect_seconds: limit for one connection, after the name look-up.
        answer_seconds: limit for a whole narinfo, from when the upstream was reached.
        nar_seconds: limit for a NAR's head, and for its first byte: as long as Nix itself waits, because a
            cache may have to fetch or build the NAR first.
        stall_seconds: limit for each later read of a NAR.
        resume_pause_seconds: wait before a NAR's first resume.
        clock: monotonic seconds, for the breakers.
        is_public: tells whether a redirect may lead to an IP address.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        *,
        former: Sequence[Upstream] = (),
        mode: NarMode = NarMode.STREAM,
        signer: UrlSigner | None = None,
        store_dir: str | None = None,
        client_keys: Sequence[PublicKey] | None = None,
        store: NarinfoStore | None = None,
        name: str | None = None,
        connect_seconds: float = 3.0,
        answer_seconds: float = 10.0,
        nar_seconds: float = 300.0,
        stall_seconds: float = 30.0,
        resume_pause_seconds: float = 0.2,
        clock: Callable[[], float] = time.monotonic,
        is_public: IsPublic = is_public,
    ) -> None:
        self._peers = {upstream.key: Peer(upstream, clock, self._probe) for upstream in upstreams}
        signer = signer or UrlSigner(secrets.token_bytes(32))
        self._counting_keys = client_keys
        self._name = name or make_name()
        self._losers: set[asyncio.Task[NarInfo | None]] = set()
        self._answer_seconds = answer_seconds
        self._http = HttpClient(
            uniform_timeouts(answer_seconds),
            connect_seconds=connect_seconds,
            connect_seconds_in_all=NAME_SECONDS + connect_seconds,
            idle_seconds=IDLE_SECONDS,
            is_public=is_public,
        )
        self._former = {
            upstream.key: Peer(upstream, clock, self._probe)
            for upstream in former
            if upstream.key not in self._peers
        }
        self._narinfos = NarinfoClient(
            self._http,
            store,
            mode,
            signer,
            store_dir=store_dir,
            client_keys=client_keys,
            answer_seconds=answer_seconds,
            clock=clock,
        )
        self._nars = NarClient(
            self._http,
            self._peers,
            self._former,
            signer,
            nar_seconds=nar_seconds,
            stall_seconds=stall_seconds,
            resume_pause_seconds=resume_pause_seconds,
        )

    async def close(self) -> None:
        """Close all connections."""
        for task in self._losers:
            task.cancel()
        await asyncio.gather(*self._losers, return_exceptions=True)
        for peer in (*self._peers.values(), *self._former.values()):
            await peer.close()
        await self._http.close()
        await self._narinfos.close()

    def health(self) -> list[UpstreamHealth]:
        """Report how each upstream is doing."""
        return [peer.health() for peer in self._peers.values()]

    def is_loop(self, via: Chain) -> bool:
        """Tell whether a request that came through these proxies must not go on to upstreams."""
        return is_loop(via, self._name)

    async def find(self, hash_part: HashPart, via: Chain = ()) -> NarInfo | None:
        """Ask every upstream for a narinfo, and rewrite its URL for our clients.

        What an upstream gave before is not asked for again, unless no client key signed it: it may be signed
        by now. None if every upstream said that it has none, or the proxies that the request came ``via``
        make a loop. Raises UpstreamError if none has it, and at least one could not say.
        """
        return None if self.is_loop(via) else await self._find(hash_part, via, is_ahead=False)

    async def find_ahead(self, hash_part: HashPart) -> NarInfo | None:
        """Find what no client asked for yet, as ``find`` does; the next ``find`` believes a miss for seconds.

        Upstreams that want fewer requests are not asked.
        """
        return await self._find(hash_part, (), is_ahead=True)

    async def _find(self, hash_part: HashPart, via: Chain, *, is_ahead: bool) -> NarInfo | None:
        kept = {peer: self._narinfos.kept(peer, hash_part) for peer in self._peers.values()}
        found = [one.narinfo for one in kept.values() if one is not None and one.is_final]
        if self._narinfos.suffices(found):
            return choose_variant(found, self._counting_keys or ())
        pending = {
            asyncio.create_task(
                self._narinfos.look_up(peer, hash_part, self._via(via), is_ahead=is_ahead),
                name=f"{hash_part} at {peer.upstream}",
            ): peer
            for peer, one in kept.items()
            if (one is None or not one.is_final)
            and not self._narinfos.has_missed(peer, hash_part)
            and not (is_ahead and peer.load() is None)
        }
        unknown: list[str] = []
        try:
            await self._collect(pending, found, unknown)
        except BaseException:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            raise
        for task in pending:
            self._let_finish(task)
        if unknown:
            found = found or [one.narinfo for one in kept.values() if one is not None]
        if found:
            return choose_variant(found, self._counting_keys or ())
        if unknown:
            raise UpstreamError("; ".join(unknown))
        return None

    async def _collect(
        self, pending: dict[asyncio.Task[NarInfo | None], Peer], found: list[NarInfo], unknown: list[str]
    ) -> None:
        """Wait for as many look-ups as needed; the others stay in ``pending``."""
        until: float | None = None
        while pending and not self._narinfos.suffices(found):
            now = asyncio.get_running_loop().time()
            if found:
                until = until or now + ASK_ON_SECONDS
                if now >= until:
                    for peer in pending.values():
                        peer.slow_until = now + _SLOW_SECONDS
                if all(peer.slow_until > now for peer in pending.values()):
                    return
            timeout = None if until is None else until - now
            done, _ = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=list(pending).index):
                del pending[task]
                try:
                    narinfo = task.result()
                except UpstreamError as error:
                    unknown.append(str(error))
                except Exception as error:  # noqa: BLE001  whatever it is, another upstream may have it
                    unknown.append(f"upstream: {show(repr(error))}")
                else:
                    found += [narinfo] if narinfo is not None else []

    def _let_finish(self, task: asyncio.Task[NarInfo | None]) -> None:
        self._losers.add(task)
        task.add_done_callback(self._forget)
        if len(self._losers) > MOST_LOSERS:
            task.cancel()

    def _forget(self, task: asyncio.Task[NarInfo | None]) -> None:
        self._losers.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved; it is already counted

    @asynccontextmanager
    async def open_nar(
        self,
        key: str,
        path: str,
        query: str = "",
        *,
        start: int = 0,
        end: int | None = None,
        via: Chain = (),
        ahead_bytes: int | None = None,
    ) -> AsyncIterator[NarStream]:
        """Open a NAR as ``NarClient.open`` does; ``ahead_bytes`` is its size if it is fetched ahead."""
        self._refuse_loop(via)
        peer = self._peers.get(key)
        counted = peer.stream() if peer is not None and ahead_bytes is None else nullcontext()
        with counted:
            try:
                async with self._nars.open(
                    key,
                    path,
                    query,
                    start=start,
                    end=end,
                    headers=self._via(via),
                    most_bytes=None if ahead_bytes is None else ahead_bytes + _MOST_BYTES_OF_CODING,
                ) as stream:
                    yield stream
            except UpstreamNotFoundError:
                self._narinfos.forget(f"upstream/{key}/{path}{'?' if query else ''}{query}")
                raise

    def load(self, key: str) -> UpstreamLoad | None:
        """Tell how busy an upstream is; None if nothing may be fetched ahead of clients' requests now."""
        peer = self._peers.get(key)
        return peer.load() if peer is not None else None

    async def head_nar(self, key: str, path: str, query: str = "", *, via: Chain = ()) -> NarHead:
        """Return the head that ``open_nar`` would find; arguments and errors are the same."""
        self._refuse_loop(via)
        return await self._nars.head(key, path, query, headers=self._via(via))

    def _refuse_loop(self, via: Chain) -> None:
        if self.is_loop(via):
            raise UpstreamNotFoundError("the request came through here before, or through too many proxies")

    def _via(self, via: Chain) -> dict[str, str]:
        return {VIA: render_via((*via, self._name))}

    async def _probe(self, upstream: Upstream) -> None:
        address = upstream.at("nix-cache-info")
        limits = uniform_timeouts(self._answer_seconds)
        reply = await ask(self._http, upstream, "GET", address, limits, headers=self._via(()))
        reply.close()
