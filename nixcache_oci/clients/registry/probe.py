"""Probes that tell whether something would work at a registry, and leave nothing that a cache counts.

Each takes one or two tries and a few seconds, while a publisher would be patient.
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from yarl import URL

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.http.client import HttpClient, HttpRequest
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.one_origin import OneOrigin, document_timeouts, join
from nixcache_oci.clients.http.reply import ERROR_LIMIT, BufferedReply
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.retry import RetryPolicy, parse_http_date
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.registry.errors import find_tls_hint
from nixcache_oci.clients.registry.token import Authorizer
from nixcache_oci.clients.registry.transport import Call, Transport
from nixcache_oci.clients.registry.uploads import Uploads
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.challenge import Challenge, parse_challenges
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.reference import RegistryReference

_SECONDS: Final = 10
_POLICY: Final = RetryPolicy(attempts=2, patience_seconds=_SECONDS)
_GREETINGS: Final = frozenset({HTTPStatus.OK, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_OPENED: Final = frozenset({HTTPStatus.ACCEPTED})
_CANCELLED: Final = frozenset({HTTPStatus.OK, HTTPStatus.ACCEPTED, HTTPStatus.NO_CONTENT})


@dataclass(frozen=True, slots=True)
class Greeting:
    """A registry's answer to a request without credentials."""

    clock_ahead: float | None  # seconds that its clock is ahead of ours; None if it sends no time
    challenges: tuple[Challenge, ...]  # of WWW-Authenticate
    is_public: bool  # whether it answered from a public address


async def greet(reference: RegistryReference) -> Greeting:
    """Ask whether this is a registry, without credentials (OCI distribution specification, end-1).

    Raises RegistryError if nothing answers, or something else does; temporary unless it names its own remedy.
    """
    http = HttpClient(document_timeouts(_SECONDS))
    try:
        async with asyncio.timeout(_SECONDS):
            asked = datetime.now(UTC)
            with translated():
                request = HttpRequest("GET", URL(f"{reference.base_url}/v2/"))
                reply = await http.send(request, OneOrigin(None, allows_http=reference.plain_http))
                answered = datetime.now(UTC)
                try:
                    body = b"" if reply.status in _GREETINGS else await reply.read(ERROR_LIMIT)
                finally:
                    reply.close()
    except TimeoutError:
        raise RegistryError(f"{reference.host}: no answer within {_SECONDS} s", is_temporary=True) from None
    except HttpError as cause:
        hint = find_tls_hint(reference.host, None, b"", cause.reason) if reference.plain_http else ""
        text = "; ".join(filter(None, (f"{reference.host}: {cause.reason}", hint)))
        raise RegistryError(text, is_temporary=not (hint or cause.is_final)) from None
    finally:
        await http.close()
    if reply.status not in _GREETINGS:
        text = f"{reference.host}: answers {reply.status} to GET /v2/, which no working registry does"
        hint = find_tls_hint(reference.host, reply.status, body) if reference.plain_http else ""
        text = "; ".join(filter(None, (text, hint)))
        raise RegistryError(text, status=reply.status, is_temporary=not hint)
    challenges = parse_challenges(reply.headers.getall("WWW-Authenticate", []))
    date = parse_http_date(reply.headers.get("Date", ""))
    # A Date is cut to the second, and was written some time between request and answer.
    ahead = (date - asked - (answered - asked) / 2).total_seconds() + 0.5 if date is not None else None
    return Greeting(ahead, tuple(challenges), reply.is_public)


async def find_token_error(
    reference: RegistryReference, credentials: Credentials, greeting: Greeting
) -> str | None:
    """Ask the token service whether it accepts these credentials for reading; returns its error, or None.

    None also if the registry has no token service: then only a real request can tell.
    """
    http = HttpClient(document_timeouts(_SECONDS))

    async def ask(request: HttpRequest, authorization: str | None) -> BufferedReply:
        reply = await http.send(request, OneOrigin(authorization, allows_http=reference.plain_http))
        return await reply.take(ERROR_LIMIT)

    tokens = Authorizer(ask, reference, credentials, push=False)
    try:
        async with asyncio.timeout(_SECONDS):
            with translated():
                await tokens.renew(None, greeting.challenges, is_guarded=greeting.is_public)
    except TimeoutError:
        return f"no answer within {_SECONDS} s"
    except HttpError as cause:
        return cause.reason
    finally:
        await tokens.close()
        await http.close()
    return None if tokens.source is not None else "they are refused, although anybody may read"


async def try_chunk(
    reference: RegistryReference, credentials: Credentials | None, digest: Digest, content: bytes
) -> None:
    """Push a small blob as one chunk; RegistryError where chunks are refused."""
    transport = Transport(reference, credentials, push=True, policy=_POLICY, stall_seconds=_SECONDS)
    try:
        uploads = Uploads(transport, f"{reference.base_url}/v2/{reference.repository}")
        await uploads.push_in_one_chunk(digest, Body.of(content))
    finally:
        await transport.close()


async def try_upload(reference: RegistryReference, credentials: Credentials | None) -> bool:
    """Open an upload and cancel it; False if that failed, and the registry will drop it later.

    Raises RegistryError, with what to do, if pushing is refused.
    """
    base = f"{reference.base_url}/v2/{reference.repository}"
    opening = Call("open an upload", "POST", URL(f"{base}/blobs/uploads/", encoded=True), accepts=_OPENED)
    async with AsyncExitStack() as stack:
        # Distribution requires the right to delete for cancelling. A publisher does not need that right, so
        # only a second transport asks for it.
        transports = [
            Transport(
                reference, credentials, push=True, delete=delete, policy=_POLICY, stall_seconds=_SECONDS
            )
            for delete in (False, True)
        ]
        for transport in transports:
            stack.push_async_callback(transport.close)
        opened = await transports[0].fetch(opening)
        for transport in transports:
            with suppress(HttpError):
                with translated():
                    session = join(opening.url, opened.headers.get("Location", ""))
                await transport.fetch_once(
                    Call("cancel it", "DELETE", session, accepts=_CANCELLED, is_guarded=opened.is_public)
                )
                return True
    return False
