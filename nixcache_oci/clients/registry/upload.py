"""Uploads of blobs: a session is opened, and one PUT sends everything and commits it.

A session that failed is not mended but left: GHCR may then say that the session is unknown, with the blob
there or without it. So a look at the blob comes first, and then a new session.

Source: OCI distribution specification, "Pushing a blob monolithically", POST then PUT.
"""

import asyncio
from http import HTTPStatus
from time import monotonic
from typing import Final

from yarl import URL

from nixcache_oci.clients.registry.answer import Answer
from nixcache_oci.clients.registry.body import Body
from nixcache_oci.clients.registry.breakage import translated
from nixcache_oci.clients.registry.download import PRESENT
from nixcache_oci.clients.registry.redirect import join
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.clients.registry.trouble import TroubleError
from nixcache_oci.oci.digest import Digest

# GHCR gives an upload ten minutes; a blob that takes up a session has to be sent within them.
_SESSION_SECONDS: Final = 60

_OPENED = frozenset({HTTPStatus.ACCEPTED})
_COMMITTED = frozenset({HTTPStatus.CREATED, HTTPStatus.NO_CONTENT})


class SessionsAhead:
    """Upload sessions that are opened before their blobs are there to be sent.

    Args:
        transport: to the registry.
        base: URL of the repository, ``https://ghcr.io/v2/owner/name/nix-cache``.
    """

    def __init__(self, transport: Transport, base: str) -> None:
        self._transport = transport
        self._base = base
        self._opened: list[tuple[float, asyncio.Task[Answer | None]]] = []  # and when, the oldest first

    def prepare(self, count: int) -> None:
        """Begin to open so many, less those that wait already."""
        while len(self._opened) < count:
            self._opened.append((monotonic(), asyncio.create_task(self._open())))

    async def take(self) -> Answer | None:
        """Give the answer that opened one to a blob; None where there is none, or the registry refused it."""
        while self._opened:
            begun, opening = self._opened.pop(0)
            if monotonic() - begun < _SESSION_SECONDS:
                return await opening
        return None

    async def close(self) -> None:
        """Leave them: registries forget sessions that nothing is sent to."""
        openings = [opening for _, opening in self._opened]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*openings, return_exceptions=True)

    async def _open(self) -> Answer | None:
        try:
            return await self._transport.fetch_once(_opening("open an upload", self._base))
        except TroubleError:
            return None  # whoever has a blob to send asks again, with all patience, and is told


async def push_blob(
    transport: Transport, base: str, digest: Digest, body: Body, ahead: SessionsAhead | None = None
) -> None:
    """Store a blob.

    Args:
        transport: to the registry.
        base: URL of the repository, ``https://ghcr.io/v2/owner/name/nix-cache``.
        digest: of the bytes.
        body: the bytes, read anew for every try.
        ahead: may have a session for the first try.

    Raises:
        RegistryError: the registry did not take it.
    """
    operation = f"push blob {digest}"
    opening = _opening(operation, base)
    looking = Call(
        operation, "HEAD", URL(f"{base}/blobs/{digest}", encoded=True), follows=False, accepts=PRESENT
    )
    opened = await ahead.take() if ahead is not None else None
    tries = transport.tries()
    while True:
        if opened is None:
            opened = await transport.fetch(opening)
        committing = opening
        started = monotonic()
        try:
            with translated():
                committing = _commit(opening, opened, digest, body)
            await transport.fetch_once(committing)
        except TroubleError as trouble:
            opened = None
            end = await tries.wait(trouble, transmission=monotonic() - started)
            if (end is None or end.is_temporary) and await _is_there(transport, looking):
                return
            if end is not None:
                raise transport.explain(committing, trouble, end) from None  # the reason is in its text
        else:
            return


def _opening(operation: str, base: str) -> Call:
    return Call(operation, "POST", URL(f"{base}/blobs/uploads/", encoded=True), accepts=_OPENED)


def _commit(opening: Call, opened: Answer, digest: Digest, body: Body) -> Call:
    """Make the PUT for a session; what its Location says is kept byte for byte."""
    url = join(opening.url, opened.headers.get("Location", "")).with_fragment(None)
    separator = "&" if url.raw_query_string else "?"
    return Call(
        opening.operation,
        "PUT",
        URL(f"{url}{separator}digest=sha256%3A{digest.hex}", encoded=True),
        headers={"Content-Type": "application/octet-stream"},
        body=body,
        accepts=_COMMITTED,
        is_guarded=opened.is_public,
        is_expected=True,  # a session that was opened exists: 404 means that it was lost
    )


async def _is_there(transport: Transport, looking: Call) -> bool:
    try:
        await transport.fetch_once(looking)
    except TroubleError:
        return False  # the next session, or the error of the last, will tell
    return True
