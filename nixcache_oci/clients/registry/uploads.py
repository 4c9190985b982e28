"""Pushing blobs: each in one request, or in chunks where a registry takes no larger one.

An upload opens a session, and one PUT sends and commits everything. A failed session is abandoned: GHCR may
then say that it is unknown, whether it stored the blob or not. So the blob is looked for first; then a new
session is opened. Only a session that is sent chunks is asked where it stands, and goes on there.

Source: OCI distribution specification, "Pushing a blob monolithically" (POST then PUT) and "Pushing a blob in
chunks". OCI-Chunk-Max-Length is of Cloudflare's registry.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from time import monotonic
from typing import Final

from yarl import URL

from nixcache_oci.clients.http.errors import Failure, HttpError
from nixcache_oci.clients.http.one_origin import join
from nixcache_oci.clients.http.reply import ERROR_LIMIT, BufferedReply
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.registry.blobs import PRESENT
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.oci.digest import Digest

# GHCR allows an upload ten minutes, within which a blob that takes a session has to be sent.
_SESSION_SECONDS: Final = 60

# Bytes of a chunk, tried in turn where a larger request was refused: ACR is reported to take 20 MB, and nginx
# takes 1 MiB with its defaults.
_CHUNK_STEPS: Final = (16 * 1024 * 1024, 4 * 1024 * 1024, 1024 * 1024)
_LEAST_CHUNK_BYTES: Final = _CHUNK_STEPS[-1]
_CHUNK_HEADERS: Final = ("OCI-Chunk-Min-Length", "OCI-Chunk-Max-Length")
# With these codes, 413 is about the blob and not about the request.
_ABOUT_BLOB: Final = ("SIZE_INVALID", "DENIED")

_RANGE = re.compile(r"(?:bytes[= ])?0-([0-9]{1,18})")
_LENGTH = re.compile(r"[1-9][0-9]{0,17}")
_BINARY: Final = {"Content-Type": "application/octet-stream"}
_OPENED = frozenset({HTTPStatus.ACCEPTED})
_TAKEN = frozenset({HTTPStatus.ACCEPTED, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE})
_STANDS = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})
_COMMITTED = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})


@dataclass(frozen=True, slots=True)
class Session:
    """An open upload."""

    url: URL  # where it goes on, byte for byte as the registry gave it
    is_guarded: bool  # whether that must be a public address
    offset: int = 0  # bytes that it has

    def after(self, answer: BufferedReply, offset: int) -> "Session":
        """Go to the Location of an answer; HttpError if that is no address."""
        with translated():
            url = join(self.url, answer.headers.get("Location", "")).with_fragment(None)
        return Session(url, self.is_guarded or answer.is_public, offset)


class SessionsAhead:
    """Sessions that are opened before their blobs are ready; ``enter`` reads the answer that opened one."""

    def __init__(
        self, transport: Transport, opening: Call, enter: Callable[[BufferedReply], Session]
    ) -> None:
        self._transport = transport
        self._opening = opening
        self._enter = enter
        # Each with the time at which it was asked for, the oldest first.
        self._opened: list[tuple[float, asyncio.Task[Session | None]]] = []

    def prepare(self, count: int) -> None:
        """Start to open sessions, up to ``count``."""
        while len(self._opened) < count:
            self._opened.append((monotonic(), asyncio.create_task(self._open())))

    async def take(self) -> Session | None:
        """Return a session; None if there is none, or the registry refused."""
        while self._opened:
            begun, opening = self._opened.pop(0)
            if monotonic() - begun < _SESSION_SECONDS:
                return await opening
        return None

    async def close(self) -> None:
        """Abandon them: registries drop unused sessions."""
        openings = [opening for _, opening in self._opened]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*openings, return_exceptions=True)

    async def _open(self) -> Session | None:
        try:
            return self._enter(await self._transport.fetch_once(self._opening))
        except HttpError:
            return None  # the blob's own push opens one, with all retries, and reports the error


class Uploads:
    """Pushes blobs to one repository, whose URL is ``base``; remembers how large a request it takes."""

    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = base
        self._opening = Call(
            "open an upload", "POST", URL(f"{base}/blobs/uploads/", encoded=True), accepts=_OPENED
        )
        self.ahead = SessionsAhead(transport, self._opening, self._enter)
        self._most_bytes: int | None = None  # of a request; None as long as none was too large
        self._least_bytes = 0  # of a chunk, but the last

    async def push(self, digest: Digest, body: Body) -> None:
        """Store a blob; RegistryError if the registry did not accept it.

        Its bytes are read again for every try. Tries are counted anew when a session in chunks has got
        further.
        """
        opening = replace(self._opening, operation=f"push blob {digest}")
        session = await self.ahead.take()
        tries, reached = self._transport.tries(), 0
        while True:
            if session is None:
                session = await self._transport.fetch_parsed(opening, ERROR_LIMIT, self._enter)
            sending = opening
            started = monotonic()
            try:
                while self._is_too_large(body.size) and session.offset < body.size:
                    sending = self._chunk(opening, session, body)
                    session = await self._send_chunk(session, sending)
                sending = _commit(opening, session, digest, body.part(session.offset, body.size))
                await self._transport.fetch_once(sending)
            except HttpError as cause:
                if session.offset >= reached + _LEAST_CHUNK_BYTES:
                    tries, reached = self._transport.tries(), session.offset
                if self._learn_size(cause, session, sending):
                    session = None
                    continue
                end = await tries.wait(cause, transmission=monotonic() - started)
                if (end is None or end.is_temporary) and await self._is_there(opening, digest):
                    return
                if end is not None:
                    raise self._transport.explain(sending, cause, end) from None  # the reason is in its text
                session = await self._resume(session, sending, body.size)
            else:
                return

    async def push_in_one_chunk(self, digest: Digest, body: Body) -> None:
        """Push a small blob as a chunk; RegistryError where chunks are refused."""
        opening = replace(self._opening, operation="push a blob in a chunk")
        session = await self._transport.fetch_parsed(opening, ERROR_LIMIT, self._enter)
        chunk = replace(self._chunk(opening, session, body), accepts=_OPENED)
        session = await self._transport.fetch_parsed(
            chunk, ERROR_LIMIT, lambda answer: session.after(answer, body.size)
        )
        await self._transport.fetch(_commit(opening, session, digest, body.part(body.size, body.size)))

    def _enter(self, opened: BufferedReply) -> Session:
        """Read the answer that opened a session, and what size of chunks it wants."""
        least, most = (_LENGTH.fullmatch(opened.headers.get(name, "")) for name in _CHUNK_HEADERS)
        self._least_bytes = int(least[0]) if least else 0
        if most and int(most[0]) >= max(self._least_bytes, _LEAST_CHUNK_BYTES):
            self._most_bytes = min(self._most_bytes or int(most[0]), int(most[0]))
        return Session(self._opening.url, is_guarded=False).after(opened, 0)

    def _is_too_large(self, size: int) -> bool:
        return self._most_bytes is not None and size > self._most_bytes

    def _chunk(self, opening: Call, session: Session, body: Body) -> Call:
        """Make the PATCH for the next chunk."""
        part = body.part(session.offset, min(session.offset + (self._most_bytes or body.size), body.size))
        # The specification's form, which is not HTTP's: ACR refuses that.
        content_range = f"{session.offset}-{session.offset + part.size - 1}"
        return replace(
            opening,
            method="PATCH",
            url=session.url,
            headers=_BINARY | {"Content-Range": content_range},
            body=part,
            accepts=_TAKEN,
            is_guarded=session.is_guarded,
            is_expected=True,
        )

    async def _send_chunk(self, session: Session, sending: Call) -> Session:
        answer = await self._transport.fetch_once(sending)
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise HttpError(Failure(None), "the upload stands at another byte than it said")
        return session.after(answer, session.offset + _size(sending))

    def _learn_size(self, cause: HttpError, session: Session, sending: Call) -> bool:
        """After a 413, tell whether smaller requests are worth a try: chunks first, then smaller ones.

        Once a chunk was taken, 413 is about the whole blob.
        """
        size = _size(sending)
        is_about_blob = cause.code in _ABOUT_BLOB or session.offset
        if cause.failure.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE or is_about_blob:
            return False
        if not self._is_too_large(size):  # else another blob has learnt it meanwhile
            smaller = next((max(step, self._least_bytes) for step in _CHUNK_STEPS if step < size), size)
            if smaller >= size:
                return False
            self._most_bytes = smaller
        return True

    async def _resume(self, session: Session, sent: Call, size: int) -> Session | None:
        """Ask a session that was sent chunks where it stands; None if it is lost, or has nothing."""
        if sent.method != "PATCH" and not session.offset:
            return None
        asking = replace(sent, method="GET", url=session.url, headers={}, body=None, accepts=_STANDS)
        try:
            answer = await self._transport.fetch_once(asking)
            match = _RANGE.fullmatch(answer.headers.get("Range", ""))
            # One byte and none are told alike.
            if match is None or not 0 < int(match[1]) < size:
                return None
            if "Location" in answer.headers:
                return session.after(answer, int(match[1]) + 1)
            return replace(session, offset=int(match[1]) + 1)
        except HttpError:
            return None

    async def _is_there(self, opening: Call, digest: Digest) -> bool:
        url = URL(f"{self._base}/blobs/{digest}", encoded=True)
        looking = Call(opening.operation, "HEAD", url, follows=False, accepts=PRESENT)
        try:
            await self._transport.fetch_once(looking)
        except HttpError:
            return False  # then the next session decides, or the last error is raised
        return True


def _commit(opening: Call, session: Session, digest: Digest, body: Body) -> Call:
    """Make the PUT that ends a session, with all that it has not got yet."""
    separator = "&" if session.url.raw_query_string else "?"
    return replace(
        opening,
        method="PUT",
        url=URL(f"{session.url}{separator}digest=sha256%3A{digest.hex}", encoded=True),
        headers=_BINARY,
        body=body,
        accepts=_COMMITTED,
        is_guarded=session.is_guarded,
        is_expected=True,  # the session exists: 404 means that it was lost
    )


def _size(call: Call) -> int:
    return call.body.size if call.body is not None else 0
