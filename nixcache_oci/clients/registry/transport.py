"""Sends calls to the registry: with authorization, retries, explained errors, and connections opened early.

A registry that keeps its blobs elsewhere redirects requests for them. The last redirect tells where to; the
two round trips of a new connection there (TCP, TLS) overlap with asking the registry for a token and for the
redirect. A request that waits for a token which another one asked for also needs a second connection to the
registry: the open one is busy with the token.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any, TypeAlias, TypeVar

from aiohttp.connector import Connection
from yarl import URL

from nixcache_oci.clients.credentials import CredentialSource
from nixcache_oci.clients.http.client import HttpClient, HttpRequest
from nixcache_oci.clients.http.errors import HttpError, show
from nixcache_oci.clients.http.one_origin import OneOrigin, blob_timeouts, document_timeouts
from nixcache_oci.clients.http.public_address import IsPublic, is_public
from nixcache_oci.clients.http.reply import ERROR_LIMIT, BufferedReply, Reply
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.retry import GiveUp, RetryPolicy, Tries, is_rate_limit
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.http.url import is_same_origin
from nixcache_oci.clients.registry.errors import Explainer
from nixcache_oci.clients.registry.token import Authorizer
from nixcache_oci.errors import RegistryError
from nixcache_oci.oci.challenge import Challenge, parse_challenges
from nixcache_oci.oci.reference import RegistryReference

# An origin, and whether it must be at a public address.
Target: TypeAlias = tuple[URL, bool]
Connect: TypeAlias = Callable[[URL, bool], Coroutine[Any, Any, Connection | None]]
_TOKEN_LIMIT = 64 * 1024  # bytes; no server takes a larger one back
_LIGHT_BYTES = 4 * 1024 * 1024  # no manifest is larger
_GOOD = frozenset({HTTPStatus.OK})
_HIDDEN = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND})
T = TypeVar("T")


class Preconnect:
    """At most one connection to each origin on the way of one request, which will probably go to ``targets``.

    ``connect`` returns None if there is nothing to open ahead; ``last`` is where the request went last.
    """

    def __init__(self, targets: Iterable[Target], connect: Connect) -> None:
        self.last: Target | None = None
        self._connecting = {target: asyncio.create_task(connect(*target)) for target in targets}

    async def arrive(self, origin: URL, is_guarded: bool) -> None:
        """Wait until the connection to an origin, if any, is ready; HttpError if it could not be opened."""
        self.last = origin, is_guarded
        connecting = self._connecting.get(self.last)
        if connecting is not None:
            with translated():
                _give_back(await connecting)

    def end(self) -> None:
        """Cancel connections that are still being opened."""
        for connecting in self._connecting.values():
            connecting.cancel()
            connecting.add_done_callback(_give_back_from)


class Storage:
    """Remembers where a registry keeps its blobs, from its last redirect."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._target: Target | None = None

    @contextmanager
    def preconnect(self, registry: Target, *, is_waiting: bool) -> Iterator[Preconnect]:
        """Open connections while a request for a blob is made.

        One to the registry, too, if the request is waiting for a token that another one asked for.
        """
        targets = {registry} if is_waiting else set()
        if self._target is not None:
            targets.add(self._target)
        preconnect = Preconnect(targets, self._connect)
        try:
            yield preconnect
        finally:
            preconnect.end()
        self._target = preconnect.last if preconnect.last and preconnect.last[0] != registry[0] else None


def _give_back(connection: Connection | None) -> None:
    if connection is not None:
        connection.release()


def _give_back_from(connecting: asyncio.Task[Connection | None]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        _give_back(connecting.result())


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the registry, as ``HttpRequest``, and what its answers mean."""

    operation: str  # for people, such as ``get manifest cache-index``
    method: str
    url: URL  # encoded
    headers: Mapping[str, str] = field(default_factory=dict)  # without Authorization
    body: Body | None = None
    follows: bool = True  # whether redirects are followed
    accepts: frozenset[int] = _GOOD  # statuses that are success; all others are failures
    is_expected: bool = False  # whether the thing is known to exist, so that 404 is retried
    is_verified: bool = False  # whether the body matches the digest that it is sent with
    may_be_absent: bool = False  # whether 404 may become NotFoundError
    # Whether the URL must lead to a public address, because a public server named it.
    is_guarded: bool = False
    # Whether it is for a blob's bytes: the registry may redirect it to its storage, whose head takes longer.
    is_blob: bool = False


def _failure(call: Call, answer: BufferedReply) -> HttpError:
    is_heavy = call.body is not None and call.body.size > _LIGHT_BYTES
    return answer.error(is_expected=call.is_expected, is_verified=call.is_verified, is_heavy=is_heavy)


class Transport:
    """Sends calls to one repository of a registry; arguments are as for ``Registry``."""

    def __init__(
        self,
        reference: RegistryReference,
        credentials: CredentialSource | None,
        *,
        push: bool,
        delete: bool = False,
        policy: RetryPolicy,
        stall_seconds: float,
        is_public: IsPublic = is_public,
        is_guarded: bool = False,
    ) -> None:
        self._policy = policy
        self._origin = URL(reference.base_url).origin()
        self._allows_http = reference.plain_http
        self._is_guarded = is_guarded
        self._has_greeted = False
        self._http = HttpClient(document_timeouts(stall_seconds), is_public=is_public)
        self._blob_limits = blob_timeouts(stall_seconds)
        self._storage = Storage(self._http.connect)
        self._tokens = Authorizer(self._ask_token_service, reference, credentials, push=push, delete=delete)
        self._explainer = Explainer(
            reference.host, str(reference), push, reference.plain_http, lambda: self._tokens.source
        )

    @property
    def challenge(self) -> Challenge | None:
        """What the registry last asked for; None if it did not yet."""
        return self._tokens.challenge

    async def close(self) -> None:
        """Close all connections."""
        await self._tokens.close()
        await self._http.close()

    async def fetch(self, call: Call, limit: int = ERROR_LIMIT) -> BufferedReply:
        """Send a call, with retries, and read at most ``limit`` bytes; RegistryError if no try succeeded."""
        return await self.fetch_parsed(call, limit, lambda answer: answer)

    async def fetch_parsed(self, call: Call, limit: int, parse: Callable[[BufferedReply], T]) -> T:
        """Send a call, with retries, and parse its answer; RegistryError if no try succeeded.

        An unusable answer, for which ``parse`` raises HttpError, is a failed try.
        """
        tries = self.tries()
        while True:
            started = monotonic()
            try:
                with translated():
                    return parse(await self.fetch_once(call, limit))
            except HttpError as cause:
                transmission = monotonic() - started if call.body else 0
                end = await tries.wait(cause, transmission=transmission)
                if end is not None:
                    raise self.explain(call, cause, end) from None  # the reason is in its text

    async def open(self, call: Call) -> Reply:
        """Send a call, with retries; the caller closes the reply. RegistryError if no try succeeded."""
        tries = self.tries()
        while True:
            try:
                with translated():
                    return await self._send(call)
            except HttpError as cause:
                end = await tries.wait(cause)
                if end is not None:
                    raise self.explain(call, cause, end) from None  # as above

    def tries(self) -> Tries:
        """Start to count the tries of an operation that consists of several calls."""
        return Tries(self._policy)

    def explain(self, call: Call, cause: HttpError, end: GiveUp) -> RegistryError:
        """Make the error that callers see."""
        return self._explainer.explain(
            call.operation,
            cause,
            end,
            may_be_absent=call.may_be_absent,
            size=call.body.size if call.body else None,
            is_manifest="/manifests/" in call.url.path,
        )

    def error(
        self, call: Call, reason: str, *, status: int | None = None, is_temporary: bool = False
    ) -> RegistryError:
        """Make the error for an unusable answer."""
        text = f"{call.operation}: {self._explainer.name}: {show(reason)}"
        return RegistryError(text, status=status, is_temporary=is_temporary)

    async def fetch_once(self, call: Call, limit: int = ERROR_LIMIT) -> BufferedReply:
        """Send a call once, and read its answer; HttpError if it failed."""
        with translated():
            return await (await self._send(call)).take(limit)

    async def _send(self, call: Call) -> Reply:
        reply = await self._send_authorized(call)
        if reply.status in call.accepts:
            return reply
        raise _failure(call, await reply.take(ERROR_LIMIT))

    async def _send_authorized(self, call: Call) -> Reply:
        """Send with the current token, and once more with a new one on demand; HttpError if that fails."""
        ahead: AbstractContextManager[Preconnect | None] = nullcontext()
        if call.is_blob:
            origin = self._origin, self._is_guarded
            ahead = self._storage.preconnect(origin, is_waiting=self._tokens.is_asking)
        with ahead as preconnect:  # before the token is asked for, to overlap the round trips
            authorization = await self._tokens.get()
            reply = await self._send_once(call, authorization, preconnect)
            if authorization is None and reply.status in _HIDDEN and self._may_log_in(reply):
                answer = await reply.take(ERROR_LIMIT)
                failure = _failure(call, answer)
                if not is_rate_limit(failure.failure) and await self._log_in():
                    return await self._send_once(call, await self._tokens.get(), preconnect)
                if reply.status in call.accepts:
                    return reply
                raise failure
            if reply.status == HTTPStatus.FORBIDDEN and not reply.is_elsewhere:
                # Some registries answer 403 to an expired token, without a challenge.
                if not await self._tokens.reconsider(authorization):
                    return reply
                reply.close()
                return await self._send_once(call, await self._tokens.get(), preconnect)
            if reply.status != HTTPStatus.UNAUTHORIZED or reply.is_elsewhere:
                return reply
            challenges = parse_challenges(reply.headers.getall("WWW-Authenticate", []))
            answer = await reply.take(ERROR_LIMIT)
            if not await self._tokens.renew(authorization, challenges, is_guarded=reply.is_public):
                raise answer.error()
            return await self._send_once(call, await self._tokens.get(), preconnect)

    def _may_log_in(self, refusal: Reply) -> bool:
        return not (refusal.is_elsewhere or self._tokens.source is None or self._has_greeted)

    async def _log_in(self) -> bool:
        """Ask for a challenge, and tell whether credentials may now find what strangers must not see.

        Some registries answer 403 or 404 to strangers, and challenge them only at ``/v2/``, or nowhere.
        """
        greeting = Call("greet", "GET", self._origin.with_path("/v2/"))
        try:
            answer = await (await self._send_once(greeting, None, None)).take(ERROR_LIMIT)
        except HttpError:
            return False  # then the refusal itself is explained
        self._has_greeted = True
        challenges = parse_challenges(answer.headers.getall("WWW-Authenticate", []))
        return await self._tokens.renew(
            None, challenges or [Challenge("basic", {})], is_guarded=answer.is_public
        )

    async def _send_once(self, call: Call, authorization: str | None, preconnect: Preconnect | None) -> Reply:
        request = HttpRequest(
            call.method,
            call.url,
            call.headers,
            call.body,
            call.follows,
            is_elsewhere=not is_same_origin(call.url, self._origin),
            is_guarded=call.is_guarded or self._is_guarded,
        )
        arrive = None if preconnect is None else preconnect.arrive
        rules = OneOrigin(authorization, self._allows_http, arrive)
        return await self._http.send(request, rules, limits=self._blob_limits if call.is_blob else None)

    async def _ask_token_service(self, request: HttpRequest, authorization: str | None) -> BufferedReply:
        reply = await self._http.send(request, OneOrigin(authorization, self._allows_http))
        return await reply.take(_TOKEN_LIMIT)
