"""Who may upload: whom one of the rules lets, which are tried in turn."""

import base64
import binascii
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

from aiohttp import hdrs, web

from nixcache_oci.proxy.uploads.interface import Login, UploadRefusedError
from nixcache_oci.proxy.writers.certificates import CertificateWriters
from nixcache_oci.proxy.writers.sessions import SESSION_PREFIX, Sessions
from nixcache_oci.proxy.writers.tokens import find_name

_log = logging.getLogger(__name__)

_JWT_START: Final = b"eyJ"  # a JSON object in base 64
_JWT_DOTS: Final = 2


@dataclass(frozen=True, slots=True)
class TokenOwner:
    """Who showed a JSON Web Token that lets upload."""

    rule: str
    subject: str  # as the token calls it, clipped
    expires_at: float  # of the token, in seconds since 1970


class TokenVerifier(Protocol):
    """Checks JSON Web Tokens, by a library that only those import who need it."""

    async def check(self, token: bytes) -> TokenOwner:
        """Return who showed it; UploadRefusedError if it does not let upload."""


@dataclass(frozen=True, slots=True)
class RuleWriters:
    """Lets those write who match a rule; each that is None, or empty, lets nobody.

    A credential comes by Bearer, or by Basic as the password of any user.
    """

    tokens: Mapping[str, bytes] = field(default_factory=dict, repr=False)  # by the name of their writer
    certificates: CertificateWriters | None = None
    oidc: TokenVerifier | None = None
    sessions: Sessions = field(default_factory=Sessions)

    async def check(self, request: web.Request) -> str:
        """Return the writer's name, as ``Writers`` says."""
        return (await self._find(request, begins_session=False)).writer

    async def log_in(self, request: web.Request) -> Login:
        """Make a password for who showed a JSON Web Token, as ``Writers`` says."""
        return await self._find(request, begins_session=True)

    async def _find(self, request: web.Request, *, begins_session: bool) -> Login:
        if not (self.tokens or self.certificates or self.oidc):
            raise UploadRefusedError(
                "nobody may upload here: set NIXCACHE_UPLOAD_TOKENS_FILE, NIXCACHE_UPLOAD_SUBJECTS or "
                "NIXCACHE_OIDC_FILE",
                HTTPStatus.FORBIDDEN,
            )
        given = request.headers.getall(hdrs.AUTHORIZATION, [])
        subject = self.certificates.subject_of(request) if self.certificates is not None else None
        if self.certificates is not None and subject is not None:
            if self.certificates.allows(subject):
                return Login(f"certificate {subject}")
            if not given:
                raise _refused("the subject of the client certificate is not one that may upload")
        if not given:
            raise UploadRefusedError(self._what_is_needed(), HTTPStatus.UNAUTHORIZED)
        credential = _read_credential(given[0]) if len(given) == 1 else None
        if credential is None:
            raise _refused("Authorization is neither Basic nor Bearer, or malformed")
        return await self._find_owner(credential, begins_session=begins_session)

    async def _find_owner(self, credential: bytes, *, begins_session: bool) -> Login:
        name = find_name(self.tokens, credential)
        if name is not None:
            return Login(f"token {name}")
        if self.oidc is None:
            raise _refused("the token is not one that may upload")
        if credential.startswith(SESSION_PREFIX.encode()):
            session = self.sessions.find(credential)
            if session is None:
                raise _refused("the session has ended, or never was: log in again")
            return Login(session.writer, session.expires_at)
        if not (credential.startswith(_JWT_START) and credential.count(b".") == _JWT_DOTS):
            raise _refused("the token is not one that may upload")
        owner = await self.oidc.check(credential)
        writer = f"oidc {owner.rule}"
        if not begins_session:
            return Login(writer, owner.expires_at)
        password, session = self.sessions.begin(writer, owner.expires_at)
        _log.info("logged in", extra={"fields": {"writer": writer, "sub": owner.subject}})
        return Login(writer, session.expires_at, password)

    def _what_is_needed(self) -> str:
        ways = []
        if self.certificates is not None:
            ways.append("a client certificate")
        if self.tokens or self.oidc is not None:
            ways.append("a password from nixcache-oci login")
        return f"uploads need {', or '.join(ways)}"


def _refused(reason: str) -> UploadRefusedError:
    return UploadRefusedError(reason, HTTPStatus.FORBIDDEN)


def _read_credential(header: str) -> bytes | None:
    scheme, _, value = header.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip().encode()
        case "basic":
            try:
                return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except (ValueError, binascii.Error):
                return None
    return None
