"""Gets the tokens, or Basic credentials, that a registry wants in Authorization.

Nothing is requested in advance: the challenge of the registry's first 401 says where tokens are issued. The
scope is built here, because a challenge may name a placeholder. One token serves all requests of a client.

Sources: distribution, "Token Authentication Specification" and "Oauth2 Token Authentication".
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from time import monotonic
from typing import Final, TypeAlias
from urllib.parse import urlencode

from yarl import URL

from nixcache_oci.clients.credentials import TOKEN_FILE_VARIABLE, Credentials, CredentialSource, may_receive
from nixcache_oci.clients.http.client import HttpRequest
from nixcache_oci.clients.http.errors import Failure, HttpError, show
from nixcache_oci.clients.http.reply import BufferedReply
from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.http.retry import is_temporary
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.http.url import basic_authorization, parse_url
from nixcache_oci.oci.challenge import Challenge
from nixcache_oci.oci.document import read_json
from nixcache_oci.oci.reference import RegistryReference

Ask: TypeAlias = Callable[[HttpRequest, str | None], Awaitable[BufferedReply]]

_CLIENT_ID = "nixcache-oci"
_DEFAULT_SECONDS = 60  # lifetime of a token that does not state it
_MOST_SECONDS = 365 * 86_400  # a longer lifetime is not in seconds
_MARGIN_SECONDS = 10
_USABLE_TOKEN = re.compile(r"[\x21-\x7e]+")
AGAIN_SECONDS: Final = 300.0
"""After which refused credentials are tried again, while anonymous reading works."""

SOON_SECONDS: Final = 10.0
"""The same, while anonymous reading is refused."""

_DENIALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the registry."""

    value: str = field(repr=False)  # never shown
    expires: float  # when it stops being used, in seconds of the monotonic clock


class Authorizer:
    """Provides the Authorization for one repository and scope; ``ask`` sends a request for a token.

    ``challenge`` is what the registry last asked for.
    """

    def __init__(
        self,
        ask: Ask,
        reference: RegistryReference,
        credentials: CredentialSource | None,
        *,
        push: bool,
        delete: bool = False,
    ) -> None:
        self._ask = ask
        self._registry = reference.host
        self._origin = URL(reference.base_url)
        self._repository = reference.repository
        self._actions = ("pull", *(("push",) if push else ()), *(("delete",) if delete else ()))
        self._keys = credentials
        self._credentials = credentials.current if credentials is not None else None
        self._refused: Credentials | None = None
        self._refused_at = 0.0
        self._withheld: Credentials | None = None
        self._push = push
        self.challenge: Challenge | None = None
        self._is_guarded = False
        self._token: Token | None = None
        self._fetch: asyncio.Task[Token] | None = None

    @property
    def source(self) -> str | None:
        """The source of the credentials in use; None for anonymous."""
        return self._credentials.source if self._credentials else None

    @property
    def is_asking(self) -> bool:
        """Whether a request for a token is under way."""
        return self._fetch is not None

    async def get(self) -> str | None:
        """Return the value of Authorization; None until the registry asked, HttpError for want of a token."""
        if self.challenge is None:
            return None
        if self.challenge.scheme == "basic":
            self._credentials = await self._find()
            if self._credentials and self._is_shown_to(self._origin, self._credentials):
                return _basic(self._credentials)
            return None
        if self._refused is not None and await self._find() not in self._useless:
            self._token = None  # an anonymous one
        token = self._token
        if token is None or monotonic() >= token.expires:
            token = await self._fetch_once()
        return f"Bearer {token.value}"

    async def renew(self, refused: str | None, challenges: Sequence[Challenge], *, is_guarded: bool) -> bool:
        """Learn from a 401, and tell whether the same request is worth a retry; HttpError if no token came.

        Args:
            refused: the request's Authorization.
            challenges: of the answer.
            is_guarded: whether it came from a public address, so that what it names must be public, too.
        """
        bearer = next(
            (each for each in challenges if each.scheme == "bearer" and "realm" in each.parameters), None
        )
        challenge = bearer or next((each for each in challenges if each.scheme == "basic"), None)
        if challenge is None:
            return False
        self.challenge = challenge
        self._is_guarded = is_guarded
        if self._token is not None and refused == f"Bearer {self._token.value}":
            self._token = None
            self._give_another_chance()
        elif challenge.scheme == "basic" and self._credentials is not None and refused is not None:
            await self._find(refused=self._credentials)
        return await self.get() != refused

    async def reconsider(self, refused: str | None) -> bool:
        """Look for other credentials after a 403, and tell whether a retry is worth it; HttpError as ``get``.

        ``refused`` is the request's Authorization: another request may have found newer ones since.
        """
        if self.challenge is None:
            return False
        if await self.get() != refused:
            return True
        used = self._credentials or self._refused
        is_worth_it = await self._find(refused=used) not in {used, *self._useless}
        if self._credentials is None:
            is_worth_it = is_worth_it or self._give_another_chance()
        if is_worth_it:
            self._token = None
        return is_worth_it

    async def close(self) -> None:
        """Cancel a request for a token."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.wait([self._fetch])

    async def _fetch_once(self) -> Token:
        """Join the request for a token that is under way, or start one; it outlives its waiters."""
        if self._fetch is None:
            self._fetch = asyncio.create_task(self._fetch_token())
            self._fetch.add_done_callback(self._end_fetch)
        return await asyncio.shield(self._fetch)

    def _end_fetch(self, fetch: asyncio.Task[Token]) -> None:
        self._fetch = None
        if not fetch.cancelled() and fetch.exception() is None:
            self._token = fetch.result()

    def _give_another_chance(self) -> bool:
        """Let refused credentials be tried again, since anonymous access does not suffice; tell whether."""
        if self._refused is None or monotonic() - self._refused_at < SOON_SECONDS:
            return False
        self._refused_at = monotonic() - AGAIN_SECONDS
        return True

    @property
    def _useless(self) -> frozenset[Credentials | None]:
        """Credentials that need not be tried, while anonymous reading works."""
        return frozenset({None, self._refused, self._withheld})

    async def _find(self, *, refused: Credentials | None = None) -> Credentials | None:
        return await self._keys.find(refused=refused) if self._keys is not None else None

    async def _fetch_token(self) -> Token:
        credentials = await self._find()
        with translated():
            realm = self._realm()
        if credentials is not None and not self._is_shown_to(realm, credentials):
            self._withhold(credentials, realm)
            credentials = None
        if credentials is not None and credentials == self._refused:
            credentials = await self._find(refused=credentials)
        if credentials == self._refused and monotonic() - self._refused_at < AGAIN_SECONDS:
            credentials = None
        try:
            return await self._request_token_as(realm, credentials)
        except HttpError as denial:
            if credentials is None or not _is_denial(denial):
                raise
            newer = await self._find(refused=credentials)
            if newer is not None and newer != credentials and self._is_shown_to(realm, newer):
                return await self._request_token_as(realm, newer)
            if self._push:
                raise
            return await self._request_anonymously(realm, credentials, denial)

    def _withhold(self, credentials: Credentials, realm: URL) -> None:
        """Continue without credentials that a token service must not receive; HttpError when pushing."""
        reason = f"names the token service {realm.origin()}, which {credentials.source} is not sent to"
        if self._push:
            text = f"it {reason}; for a registry like this set {TOKEN_FILE_VARIABLE}"
            raise HttpError.final(text)
        if credentials != self._withheld:
            self._withheld = credentials
            self._warn_of_reading_anonymously(reason)

    async def _request_token_as(self, realm: URL, credentials: Credentials | None) -> Token:
        if credentials is not None:
            self._credentials = credentials  # also if they are refused: then the error names them
        token = await self._request_token(realm, credentials)
        self._credentials = credentials
        if self._refused is None:
            return token
        if credentials is None:
            return self._until_next_try(token)
        _log.info("%s takes credentials again, from %s", self._registry, credentials.source)
        self._refused = None
        return token

    async def _request_anonymously(self, realm: URL, credentials: Credentials, denial: HttpError) -> Token:
        """Read without credentials for some minutes, after they were refused; HttpError if refused too."""
        try:
            token = await self._request_token(realm, None)
        except HttpError as second:
            raise (denial if _is_denial(second) else second) from None
        if credentials != self._refused:
            reason = f"refuses the credentials from {credentials.source} ({denial.reason})"
            self._warn_of_reading_anonymously(reason)
        self._credentials, self._refused, self._refused_at = None, credentials, monotonic()
        return self._until_next_try(token)

    def _until_next_try(self, token: Token) -> Token:
        return replace(token, expires=min(token.expires, self._refused_at + AGAIN_SECONDS))

    def _warn_of_reading_anonymously(self, reason: str) -> None:
        _log.warning("%s %s: reading anonymously", self._registry, show(reason))

    def _is_shown_to(self, url: URL, credentials: Credentials) -> bool:
        """Tell whether credentials may be sent to a URL."""
        return not credentials.is_ambient or may_receive(url, self._origin)

    async def _request_token(self, realm: URL, credentials: Credentials | None) -> Token:
        """Request a token; Quay's service knows no ``delete``, and deletes for who may push."""
        while True:
            started = monotonic()
            with translated():
                request, authorization = self._token_request(realm, credentials)
            answer = await self._ask(request, authorization)
            if answer.status == HTTPStatus.OK:
                return _parse_token(answer, started)
            if answer.status != HTTPStatus.BAD_REQUEST or "delete" not in self._actions:
                raise answer.error(is_about_token=True)
            self._actions = tuple(action for action in self._actions if action != "delete")

    def _parameters(self) -> dict[str, str]:
        return self.challenge.parameters if self.challenge else {}

    def _realm(self) -> URL:
        """Read the URL of the token service; HttpError if the challenge has none."""
        try:
            realm = parse_url(self._parameters().get("realm", ""))
            realm.origin()  # raises for a bad scheme or port
            if realm.scheme in {"http", "https"} and realm.host and realm.raw_user is None:
                return realm
        except ValueError:
            pass
        raise HttpError.final("its challenge names no usable address for tokens")

    def _token_request(self, realm: URL, credentials: Credentials | None) -> tuple[HttpRequest, str | None]:
        parameters = self._parameters()
        fields = {"service": parameters["service"]} if "service" in parameters else {}
        fields["scope"] = f"repository:{self._repository}:{','.join(self._actions)}"
        if credentials is not None and credentials.is_identity_token:
            fields |= {
                "grant_type": "refresh_token",
                "client_id": _CLIENT_ID,
                "refresh_token": credentials.password,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            body = Body.of(urlencode(fields).encode())
            return HttpRequest("POST", realm, headers, body, follows=False, is_guarded=self._is_guarded), None
        separator = "&" if realm.raw_query_string else "?"
        url = URL(f"{realm.with_fragment(None)}{separator}{urlencode(fields)}", encoded=True)
        request = HttpRequest("GET", url, is_guarded=self._is_guarded)
        return request, _basic(credentials) if credentials else None


def _basic(credentials: Credentials) -> str:
    return basic_authorization(credentials.username, credentials.password)


def _is_denial(cause: HttpError) -> bool:
    return cause.is_about_token and cause.failure.status in _DENIALS and not is_temporary(cause.failure)


def _parse_token(answer: BufferedReply, started: float) -> Token:
    """Read the token service's answer; HttpError, which repeats nothing of it, if it holds no token."""
    document = read_json(answer.body)
    if isinstance(document, dict):
        value = document.get("token") or document.get("access_token")
        if isinstance(value, str) and _USABLE_TOKEN.fullmatch(value):
            return Token(value, started + _usable_seconds(document.get("expires_in")))
    raise HttpError(Failure(answer.status), "the token service's answer holds no token", is_about_token=True)


def _usable_seconds(expires_in: object) -> float:
    """Take a margin off a lifetime, so that no token expires in transit."""
    lifetime: float = _DEFAULT_SECONDS
    if isinstance(expires_in, int | float) and expires_in is not True and 0 < expires_in < _MOST_SECONDS:
        lifetime = expires_in
    return lifetime - min(_MARGIN_SECONDS, lifetime / 4)
