"""An answer whose body is streamed or read whole, at a minimum rate.

A timeout per read ends silence, but not a trickle. So each window of waiting has to bring a certain number of
bytes. Only time spent waiting counts, because our own clients may read slowly; there is no limit on total
time, because bodies may be large.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from multidict import CIMultiDictProxy

from nixcache_oci.clients.http.errors import Failure, HttpError, parse_error
from nixcache_oci.clients.http.translation import FOREIGN_ERRORS, SlowBodyError, translate
from nixcache_oci.clients.http.url import parse_url
from nixcache_oci.wording import counted

# Tables, packs and NARs: eight at once on a line of 64 kbit/s. Nix itself accepts a byte a second, but a
# download that is given up here is resumed where it stopped.
STREAM_BYTES_PER_SECOND: Final = 1024
# Manifests, lists and tokens, which are of use only when complete: 4 MiB take 17 minutes.
DOCUMENT_BYTES_PER_SECOND: Final = 4 * 1024
# Each connection starts its own window. A stream that is resumed must also hold the rate over so many
# windows, in which one wait counts as one window at most: outages are bounded elsewhere.
RESUMED_WINDOWS: Final = 3

ERROR_LIMIT: Final = 64 * 1024  # bytes of an error document that are read
_REDIRECTS: Final = range(300, 400)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of an exchange, in seconds."""

    head: float | None  # for all heads together, redirects included; None for no limit
    first: float | None  # for each read until the body's first bytes; None for no limit
    stall: float  # for each later read, and the window of the minimum rate
    again: float  # how long a new connection may give no head before another is tried in parallel


class MinimumRate:
    """Enforces a minimum rate on one body, over windows of time spent waiting."""

    __slots__ = ("_count", "_least", "_waited", "_window_seconds")

    def __init__(self, window_seconds: float, bytes_per_second: int) -> None:
        self._window_seconds = window_seconds
        self._least = window_seconds * bytes_per_second
        self._waited = 0.0
        self._count = 0

    def add(self, count: int, waited: float) -> None:
        """Count bytes, and the seconds waited for them; SlowBodyError if a window brought too few."""
        self._count += count
        self._waited += waited
        if self._waited < self._window_seconds:
            return
        if self._count < self._least:
            raise SlowBodyError(f"only {counted(self._count, 'byte')} in {self._waited:.0f} s")
        self._waited = 0.0
        self._count = 0


@dataclass(frozen=True, slots=True)
class BufferedReply:
    """A closed ``Reply``, whose attributes it has, with at least the beginning of its body."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes
    is_elsewhere: bool = False
    is_public: bool = False

    def error(
        self,
        *,
        is_expected: bool = False,
        is_verified: bool = False,
        is_heavy: bool = False,
        is_about_token: bool = False,
    ) -> HttpError:
        """Make the error for this answer; the arguments are those of ``Failure`` and ``HttpError``."""
        failure = Failure(
            self.status,
            {"retry-after": self.headers.get("Retry-After", "")},
            self.body,
            is_elsewhere=self.is_elsewhere,
            is_expected=is_expected,
            is_verified=is_verified,
            is_heavy=is_heavy,
        )
        code, message = parse_error(self.body)
        said = " ".join(filter(None, (str(self.status), code or _phrase(self.status))))
        if message and message.upper() != code:
            said += f" ({message})"
        if self.status in _REDIRECTS and (origin := _origin_of(self.headers.get("Location", ""))):
            said += f", to {origin}"
        if is_about_token:
            said = f"no token: {said}"
        elif self.is_elsewhere:
            said = f"the storage behind the registry answered {said}"
        return HttpError(failure, said, code=code, is_about_token=is_about_token)


class Answer(Protocol):
    """An answer as a transport has it, once its head is here."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        """Names are case-insensitive."""

    @property
    def peer(self) -> str | None:
        """The IP address that it came from; None if unknown, as behind an HTTP proxy."""

    async def next(self) -> bytes:
        """Return the next bytes of the body; none at its end. What arrived before a fault comes first."""

    def limit_stall(self, seconds: float) -> None:
        """Limit further waits for bytes, instead of by ``Timeouts.first``."""

    def close(self) -> None:
        """Release the connection, or end what is still to come."""


class Reply:
    """An answer whose body is still to be read. Close it; an unread rest costs its connection.

    Args:
        answer: requested with ``limits.first`` as the limit for each read.
        limits: for the body.
        is_elsewhere: as below.
        is_public: as below.

    Attributes:
        status: of HTTP.
        headers: with case-insensitive names.
        is_elsewhere: whether another server than the intended one answered.
        is_public: whether it came from a public address, or from an unknown one behind an HTTP proxy: then
            what it names must be public, too.
    """

    def __init__(
        self,
        answer: Answer,
        limits: Timeouts,
        *,
        is_elsewhere: bool,
        is_public: bool,
    ) -> None:
        self._answer = answer
        self._limits = limits
        self._rate = MinimumRate(limits.stall, STREAM_BYTES_PER_SECOND)
        self._is_first = True  # its wait is no stall
        self._clock = asyncio.get_running_loop().time
        self.status = answer.status
        self.headers = answer.headers
        self.is_elsewhere = is_elsewhere
        self.is_public = is_public

    async def take(self, limit: int) -> BufferedReply:
        """Read at most ``limit`` bytes, as ``read`` does, and close it."""
        try:
            body = await self.read(limit)
        finally:
            self.close()
        return BufferedReply(self.status, self.headers, body, self.is_elsewhere, self.is_public)

    async def read(self, limit: int) -> bytes:
        """Read at most ``limit`` bytes of the body; errors are those of ``next``."""
        body = bytearray()
        self._rate = MinimumRate(self._limits.stall, DOCUMENT_BYTES_PER_SECOND)
        self._end_first()
        while len(body) < limit and (chunk := await self.next()):
            body += chunk
        return bytes(body[:limit])

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives; errors are those of ``next``."""
        while chunk := await self.next():
            yield chunk

    async def next(self) -> bytes:
        """Return the next bytes of the body as they arrive; none at its end.

        Raises HttpError if the connection broke or stalled, or the body arrives too slowly.
        """
        began = self._clock()
        try:
            chunk = await self._answer.next()
            if self._is_first:
                self._end_first()
                began = self._clock()
            if chunk:
                self._rate.add(len(chunk), self._clock() - began)
        except FOREIGN_ERRORS as error:
            raise translate(error) from None
        return chunk

    def close(self) -> None:
        """Release the connection, or end it if the body was not read to its end."""
        self._answer.close()

    def _end_first(self) -> None:
        self._is_first = False
        self._answer.limit_stall(self._limits.stall)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _origin_of(location: str) -> str:
    """Return a URL's origin, without path and query, which may be signed; empty if it is no URL."""
    try:
        return str(parse_url(location, encoded=True).origin())
    except ValueError:
        return ""
