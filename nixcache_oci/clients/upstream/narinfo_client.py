"""Narinfos of one upstream at a time: asked for, or as it gave them before.

What an upstream gave is final if a client key signed it; else it may be signed by now, and is asked for again
after a minute.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from nixcache_oci.clients.bounded_cache import BoundedCache
from nixcache_oci.clients.http.client import HttpClient
from nixcache_oci.clients.http.content_coding import Decoder, is_coded
from nixcache_oci.clients.http.fresh import AGAIN_SECONDS
from nixcache_oci.clients.http.reply import Reply, Timeouts
from nixcache_oci.clients.upstream.address import NarMode, Upstream, UrlSigner, rewrite
from nixcache_oci.clients.upstream.nar_stream import ABSENT_STATUSES, status_error
from nixcache_oci.clients.upstream.narinfo_store import NarinfoStore
from nixcache_oci.clients.upstream.peer import Attempt, Peer
from nixcache_oci.clients.upstream.rules import ask, upstream_errors
from nixcache_oci.errors import FormatError, UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.nix.variants import is_accepted

_LARGEST_NARINFO_BYTES: Final = 1024 * 1024
_OK: Final = 200
_FRESH_SECONDS: Final = 60.0
# A miss that no client asked for yet is believed for so long: the path may be published at any time.
_MISSED_SECONDS: Final = 10.0
_MOST_MISSED: Final = 8192
_MOST_PLACES: Final = 8192


class KeptNarInfo(NamedTuple):
    """What an upstream gave before."""

    narinfo: NarInfo
    is_final: bool  # whether it is not asked for again


class NarinfoClient:
    """Asks upstreams, and rewrites URLs for clients; arguments as of ``Upstreams``."""

    def __init__(
        self,
        http: HttpClient,
        store: NarinfoStore | None,
        mode: NarMode,
        signer: UrlSigner,
        *,
        store_dir: str | None,
        client_keys: Sequence[PublicKey] | None,
        answer_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._http = http
        self._store = store
        self._mode = mode
        self._signer = signer
        self._store_dir = store_dir
        self._keys = client_keys
        self._answer_seconds = answer_seconds
        self._limits = Timeouts(None, None, answer_seconds, AGAIN_SECONDS)
        self._clock = clock
        self._missed: BoundedCache[tuple[Peer, HashPart], float] = BoundedCache(_MOST_MISSED)
        # Which narinfo said that a NAR is there, by its URL for clients.
        self._places: BoundedCache[str, tuple[str, HashPart]] = BoundedCache(_MOST_PLACES)

    async def close(self) -> None:
        """Save what is kept."""
        if self._store is not None:
            await self._store.close()

    def suffices(self, found: Sequence[NarInfo]) -> bool:
        """Tell whether no other upstream has to be asked."""
        return bool(found) and (self._keys is None or any(is_accepted(one, self._keys) for one in found))

    def kept(self, peer: Peer, hash_part: HashPart) -> KeptNarInfo | None:
        """Return what an upstream gave before."""
        key = peer.upstream.key
        held = self._store.get(key, hash_part) if self._store is not None else None
        try:
            narinfo = self._parse(peer.upstream, hash_part, held[0]) if held is not None else None
        except UpstreamError:  # the file was damaged, in a way that its checksum does not show
            narinfo = None
        if held is None or narinfo is None:
            return None
        is_final = held[1] < _FRESH_SECONDS or self.suffices([narinfo])
        if is_final:
            peer.kept += 1
        return KeptNarInfo(narinfo, is_final)

    def has_missed(self, peer: Peer, hash_part: HashPart) -> bool:
        """Tell whether an upstream just said that it lacks a path, and no client had asked for that yet."""
        missed_at = self._missed.get((peer, hash_part))
        return missed_at is not None and self._clock() - missed_at < _MISSED_SECONDS

    def forget(self, url: str) -> None:
        """Forget the narinfo that named this URL, whose NAR is gone."""
        place = self._places.get(url)
        if place is not None and self._store is not None:
            self._store.forget(*place)

    async def look_up(
        self, peer: Peer, hash_part: HashPart, headers: Mapping[str, str], *, is_ahead: bool
    ) -> NarInfo | None:
        """Ask one upstream; None if it has none for our store. ``is_ahead`` for ``Upstreams.find_ahead``.

        Raises UpstreamError if it could not say.
        """

        async def ask_for_it(attempt: Attempt) -> NarInfo | None:
            reply = await ask(
                self._http,
                peer.upstream,
                "GET",
                peer.upstream.at(f"{hash_part}.narinfo"),
                self._limits,
                headers=headers,
                on_connect=attempt.connected,
                most_bytes=_LARGEST_NARINFO_BYTES,
            )
            # read even for a miss: a connection with an unread body cannot be reused
            body = await read_narinfo(peer.upstream, reply)
            if reply.status in ABSENT_STATUSES:
                return None
            if reply.status != _OK:
                raise status_error(
                    f"upstream {peer.upstream}: {hash_part}.narinfo", reply.status, reply.headers
                )
            narinfo = self._parse(peer.upstream, hash_part, body)
            if narinfo is not None and self._store is not None:
                self._store.put(peer.upstream.key, hash_part, body)
            return narinfo

        async with peer.look_up_turn():
            narinfo = await peer.attempt(self._answer_seconds, ask_for_it)
        if narinfo is not None:
            peer.hits += 1
            return narinfo
        peer.misses += 1
        if is_ahead:
            self._missed.put((peer, hash_part), self._clock())
        return None

    def _parse(self, upstream: Upstream, hash_part: HashPart, body: bytes) -> NarInfo | None:
        try:
            narinfo = rewrite(NarInfo.parse(body), upstream, self._mode, self._signer)
        except FormatError as error:
            raise UpstreamError(f"upstream {upstream}: {hash_part}.narinfo: {error}") from error
        if narinfo.store_path.hash_part != hash_part:
            raise UpstreamError(f"upstream {upstream}: {hash_part}.narinfo: is about {narinfo.store_path}")
        if self._store_dir not in (None, narinfo.store_path.store_dir):
            return None
        self._places.put(narinfo.url, (upstream.key, hash_part))
        return narinfo


async def read_narinfo(upstream: Upstream, reply: Reply) -> bytes:
    """Read and close a small answer, and undo its content coding; UpstreamError if it is unusable."""
    coding = reply.headers.get("Content-Encoding", "")
    body = bytearray()
    received = 0
    try:
        with upstream_errors(upstream):
            decoder = Decoder(coding) if is_coded(coding) else None
            while chunk := await reply.next():
                received += len(chunk)
                for piece in decoder.feed(chunk) if decoder is not None else (chunk,):
                    body += piece
                    if max(len(body), received) > _LARGEST_NARINFO_BYTES:
                        raise UpstreamError(
                            f"upstream {upstream}: narinfo: over {_LARGEST_NARINFO_BYTES} bytes"
                        )
            if decoder is not None:
                decoder.end()
    finally:
        reply.close()
    return bytes(body)
