"""Public keys of an issuer of JSON Web Tokens: fetched when needed, and kept for an hour.

Sources: OpenID Connect Discovery 1.0, "Obtaining OpenID Provider Configuration Information"; RFC 7517 (keys).
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import jwt
from yarl import URL

from nixcache_oci.clients.http.client import HttpClient, HttpRequest
from nixcache_oci.clients.http.errors import HttpError
from nixcache_oci.clients.http.one_origin import OneOrigin, document_timeouts
from nixcache_oci.clients.http.translation import translated
from nixcache_oci.clients.http.url import parse_url
from nixcache_oci.errors import Error, FormatError
from nixcache_oci.oci.document import get_list, get_text, parse_document

ALGORITHMS: Final = ("RS256", "ES256")
"""Never a symmetric one, for which a public key would be a password that everybody knows."""

FRESH_SECONDS: Final = 3600.0
"""Keys are fetched anew after this time; an issuer may have withdrawn one."""

STALE_SECONDS: Final = 24 * 3600.0
"""While they cannot be fetched, the old ones count for this long."""

AGAIN_SECONDS: Final = 30.0
"""Between two fetches, whatever tokens come."""

FETCH_SECONDS: Final = 10.0
MOST_KEYS: Final = 100
MOST_BYTES: Final = 256 * 1024

_CONFIGURATION: Final = "/.well-known/openid-configuration"

_log = logging.getLogger(__name__)


class KeysUnavailableError(Error):
    """There are no keys: none could be fetched."""


class IssuerKeys:
    """Keys of one issuer, by its URL; ``clock`` counts seconds."""

    def __init__(self, issuer: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._clock = clock
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._lock = asyncio.Lock()

    async def find(self, key_id: object) -> jwt.PyJWK | None:
        """Return the key of an id; None if the issuer has no such key.

        Raises KeysUnavailableError if the keys cannot be fetched.
        """
        key = self._keys.get(key_id) if isinstance(key_id, str) else None
        if key is not None and self._is_younger(self._fetched_at, FRESH_SECONDS):
            return key
        async with self._lock:
            if not self._is_younger(self._tried_at, AGAIN_SECONDS):
                self._tried_at = self._clock()
                await self._fetch()
        if not self._is_younger(self._fetched_at, STALE_SECONDS):
            raise KeysUnavailableError(f"{self._issuer}: no keys")
        return self._keys.get(key_id) if isinstance(key_id, str) else None

    def _is_younger(self, time_of: float | None, seconds: float) -> bool:
        return time_of is not None and self._clock() - time_of < seconds

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = await fetch_keys(self._issuer)
        except (HttpError, FormatError, TimeoutError) as error:
            reason = str(error) or f"no answer within {FETCH_SECONDS:.0f} s"
            fields = {"issuer": self._issuer, "error": reason}
            _log.warning("the issuer's keys cannot be fetched", extra={"fields": fields})
        else:
            self._fetched_at = self._clock()
            _log.info("issuer's keys", extra={"fields": {"issuer": self._issuer, "keys": len(self._keys)}})


async def fetch_keys(issuer: str) -> dict[str, jwt.PyJWK]:
    """Fetch the keys that an issuer signs with, by their id; HttpError or FormatError if that fails."""
    http = HttpClient(document_timeouts(FETCH_SECONDS))
    try:
        with translated():
            url = URL(issuer.rstrip("/") + _CONFIGURATION)
            # https never becomes http.
            rules = OneOrigin(None, allows_http=url.scheme == "http")
            configuration, is_public = await _get(http, url, rules, is_guarded=False)
            if get_text(configuration, "issuer") != issuer:
                raise FormatError("it is another issuer by its own configuration")
            try:
                keys_url = parse_url(get_text(configuration, "jwks_uri"), encoded=True)
                keys_url.origin()
            except ValueError:
                raise FormatError("jwks_uri: expected a URL") from None
            # A public server must not lead inside; one here may lead anywhere.
            document, _ = await _get(http, keys_url, rules, is_guarded=is_public)
    finally:
        await http.close()
    return _parse_keys(get_list(document, "keys"))


async def _get(
    http: HttpClient, url: URL, rules: OneOrigin, *, is_guarded: bool
) -> tuple[dict[str, object], bool]:
    reply = await http.send(HttpRequest("GET", url, is_guarded=is_guarded), rules)
    answer = await reply.take(MOST_BYTES + 1)
    if answer.status != 200:  # noqa: PLR2004
        raise answer.error()
    return parse_document(answer.body, str(url.origin()), MOST_BYTES), reply.is_public


def _parse_keys(members: list[object]) -> dict[str, jwt.PyJWK]:
    """Read the keys that can check a signature here; others are left out."""
    keys: dict[str, jwt.PyJWK] = {}
    for member in members[:MOST_KEYS]:
        if not isinstance(member, dict) or member.get("use", "sig") != "sig":
            continue
        with suppress(jwt.PyJWTError, ValueError, TypeError):
            key = jwt.PyJWK(member)
            if key.algorithm_name in ALGORITHMS and isinstance(key.key_id, str):
                keys[key.key_id] = key
    if not keys:
        raise FormatError("it has no keys that are usable here")
    return keys
