"""NARs of upstreams whose narinfos clients were given, and that they did not ask for yet. No I/O.

A client that asks for narinfos may only look: ``nix path-info``, ``--dry-run`` and ``nix-env -qas`` never
ask for a NAR. So a client's request for a NAR of an upstream releases what it was given until then, and what
it is given later waits for its next such request. What is released is ordered as Nix will ask for it, and how
many NARs a client may have unread depends on how many it has used.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final, Self

from nixcache_oci.nix.closure import order_as_unpacked
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest

MAX_NAR_BYTES: Final = 1024 * 1024
"""A NAR of an upstream is fetched ahead if its file is no larger."""

MOST_WANTED: Final = 8192
"""NARs that are remembered, of all clients; beyond, the oldest are forgotten."""

MOST_REFERENCES: Final = 65_536
"""Their references that are remembered; those of further ones do not count for the order."""

MOST_CLIENTS: Final = 256

KEPT_SECONDS: Final = 300.0
"""How long after its narinfo a NAR may be fetched ahead."""

ACTIVE_SECONDS: Final = 5.0
"""How long after its last request for a NAR anything is fetched ahead of a client."""

FIRST_UNREAD: Final = 64
"""NARs that a client may have unread before it has used one; for each that it uses, two more."""

_MORE_PER_USED: Final = 2
_PREFIX: Final = "upstream/"


@dataclass(frozen=True, slots=True)
class UpstreamNar:
    """A small NAR of an upstream, as the narinfo that a client was given describes it.

    Attributes:
        url: relative to this proxy.
        digest: of the file.
        size: bytes of the file.
        base_name: of its store object.
        references: base names.
    """

    url: str
    digest: Digest
    size: int
    base_name: str
    references: tuple[str, ...] = ()

    @classmethod
    def of(cls, narinfo: NarInfo) -> Self | None:
        """Read what can be fetched ahead of a narinfo; None if it is large, or could not be verified."""
        digest, size = narinfo.file_hash, narinfo.file_size
        if narinfo.compression == "none":
            digest, size = narinfo.nar_hash, narinfo.nar_size
        if digest is None or size is None or not 0 < size <= MAX_NAR_BYTES:
            return None
        if not narinfo.url.startswith(_PREFIX):
            return None  # clients get it elsewhere
        base_name = narinfo.store_path.base_name
        return cls(narinfo.url, Digest(digest.digest_hex), size, base_name, narinfo.references)

    @property
    def key(self) -> str:
        """Of its upstream."""
        return self.url.removeprefix(_PREFIX).partition("/")[0]

    @property
    def path_and_query(self) -> tuple[str, str]:
        """What follows the key in its URL."""
        path, _, query = self.url.removeprefix(f"{_PREFIX}{self.key}/").partition("?")
        return path, query


@dataclass(slots=True)
class _Client:
    """What one client was given and did not ask for, by URL."""

    given: dict[str, UpstreamNar] = field(default_factory=dict)
    # By upstream, and in order.
    released: dict[str, OrderedDict[str, UpstreamNar]] = field(default_factory=dict)
    asked_at: float = -math.inf
    unread: int = 0
    used: int = 0

    @property
    def may_have_more(self) -> bool:
        return self.unread < FIRST_UNREAD + _MORE_PER_USED * self.used

    def pop(self, url: str) -> UpstreamNar | None:
        if (nar := self.given.pop(url, None)) is not None:
            return nar
        return next((queue.pop(url) for queue in self.released.values() if url in queue), None)

    def release(self) -> None:
        names = order_as_unpacked({nar.base_name: nar.references for nar in self.given.values()})
        places = {name: place for place, name in enumerate(names)}
        for nar in sorted(self.given.values(), key=lambda one: places[one.base_name]):
            self.released.setdefault(nar.key, OrderedDict())[nar.url] = nar
        self.given.clear()


class WantedNars:
    """What may be fetched ahead, by client; ``clock`` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        # When each client was given a narinfo, by client and URL, oldest first.
        self._since: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._references = 0

    def give(self, client: str, nar: UpstreamNar) -> None:
        """Note that a client was given the narinfo of a NAR."""
        if (client, nar.url) in self._since:
            return
        if self._references + len(nar.references) > MOST_REFERENCES:
            nar = replace(nar, references=())
        self._references += len(nar.references)
        self._client(client).given[nar.url] = nar
        self._since[client, nar.url] = self._clock()
        if len(self._since) > MOST_WANTED:
            self.forget(*next(iter(self._since)))

    def ask(self, client: str, url: str) -> UpstreamNar | None:
        """Note that a client asks for a NAR; returns what is known of it, if that is still wanted."""
        known = self._client(client)
        known.asked_at = self._clock()
        nar = self.forget(client, url)
        if known.given:
            known.release()
        return nar

    def note_used(self, client: str) -> None:
        """Note that a NAR was asked for that had been fetched ahead of this client."""
        known = self._client(client)
        known.unread = max(0, known.unread - 1)
        known.used += 1

    def is_active(self, client: str) -> bool:
        """Tell whether a client asked for a NAR just now."""
        known = self._clients.get(client)
        return known is not None and self._clock() - known.asked_at < ACTIVE_SECONDS

    def upstreams(self) -> list[str]:
        """List the keys of upstreams that have what is wanted now."""
        active = [known for client, known in self._clients.items() if self.is_active(client)]
        return list(dict.fromkeys(key for known in active for key, queue in known.released.items() if queue))

    def next(self, key: str) -> tuple[str, UpstreamNar] | None:
        """Return the next NAR to fetch from an upstream, and the client that will ask for it."""
        for client, known in self._clients.items():
            if self.is_active(client) and known.may_have_more and (queue := known.released.get(key)):
                return client, next(iter(queue.values()))
        return None

    def take(self, client: str, nar: UpstreamNar) -> None:
        """Note that a NAR is fetched ahead of a client."""
        self.forget(client, nar.url)
        known = self._client(client)
        known.unread += 1
        self._clients.move_to_end(client)  # clients take turns

    def forget(self, client: str, url: str) -> UpstreamNar | None:
        """Fetch this no more for a client; returns what was known of it."""
        known = self._clients.get(client)
        nar = known.pop(url) if known is not None else None
        if nar is not None:
            del self._since[client, url]
            self._references -= len(nar.references)
        return nar

    def expire(self) -> None:
        """Forget what was given too long ago, and clients that have nothing any more."""
        oldest = self._clock() - KEPT_SECONDS
        while self._since and next(iter(self._since.values())) < oldest:
            self.forget(*next(iter(self._since)))
        held = {client for client, _ in self._since}
        for client, known in list(self._clients.items()):
            if client not in held and known.asked_at < oldest:
                del self._clients[client]

    def _client(self, client: str) -> _Client:
        known = self._clients.get(client)
        if known is None:
            if len(self._clients) >= MOST_CLIENTS:
                oldest = next(iter(self._clients))
                for place in [place for place in self._since if place[0] == oldest]:
                    self.forget(*place)
                del self._clients[oldest]
            known = self._clients[client] = _Client()
        return known
