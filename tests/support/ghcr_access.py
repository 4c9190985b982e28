"""Who may do what at the double of GHCR: tokens of the registry, and signed URLs of the storage."""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_store import GhcrStore
from tests.support.ghcr_wire import Answer, json_answer, oci_error

SERVICE = "ghcr.io"
_SCOPE = re.compile(r"repository:(?P<name>[^:\s]+):(?P<actions>[a-z*,]+)")
_DENIED = oci_error(403, "DENIED", "requested access to the resource is denied")
_LINKED_ELSEWHERE = oci_error(403, "DENIED", "permission_denied: write_package")


@dataclass(frozen=True, slots=True)
class _Grant:
    rights: Mapping[str, frozenset[str]]
    expires: float
    epoch: int


def basic_password(header: str) -> str | None:
    """Read the password out of a Basic Authorization header."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        _, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return None
    return password if colon else None


class TokenService:
    """Issues registry tokens, and checks them."""

    def __init__(self, manners: Manners, store: GhcrStore) -> None:
        self._manners = manners
        self._store = store
        self._grants: dict[str, _Grant] = {}
        self._epoch = 0

    @property
    def issued(self) -> frozenset[str]:
        """Every token so far."""
        return frozenset(self._grants)

    def expire(self) -> None:
        self._epoch += 1

    def rights_of(self, token: str) -> frozenset[str]:
        """What a GitHub token may do; nothing where it is unknown."""
        if token == self._manners.token:
            return frozenset({"pull", "push", "delete"})
        return frozenset({"pull"} if token == self._manners.read_token else ())

    def answer(self, authorization: str | None, scopes: list[str]) -> Answer:
        """Answer a request for a token: unknown credentials are refused even where none are needed."""
        wanted = {
            match["name"]: frozenset(match["actions"].split(","))
            for scope in " ".join(scopes).split()
            if (match := _SCOPE.fullmatch(scope))
        }
        if authorization is None:
            if not wanted or self._manners.private or not all(self._store.exists(name) for name in wanted):
                return _DENIED
            rights = frozenset({"pull"})
        else:
            password = basic_password(authorization)
            rights = self.rights_of(password) if password else frozenset()
            if not rights:
                return _DENIED
        token = secrets.token_urlsafe(24)
        granted = {name: actions & rights for name, actions in wanted.items()}
        self._grants[token] = _Grant(granted, time.monotonic() + self._manners.token_seconds, self._epoch)
        lifetime = {"expires_in": self._manners.token_seconds} if self._manners.tells_token_seconds else {}
        return json_answer(200, {"token": token, **lifetime})

    def refusal(self, host: str, authorization: str | None, name: str | None, action: str) -> Answer | None:
        """Check a request to the registry; None lets it pass. Without a name any good token will do."""
        scheme, _, token = (authorization or "").partition(" ")
        grant = self._grants.get(token) if scheme.lower() == "bearer" else None
        if grant is None or grant.epoch != self._epoch or time.monotonic() > grant.expires:
            actions = "pull" if action == "pull" else "pull,push"
            scope = f"repository:{name}:{actions}" if name else "repository:user/image:pull"
            challenge = f'Bearer realm="http://{host}/token",service="{SERVICE}",scope="{scope}"'
            return oci_error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        if name and action not in grant.rights.get(name, frozenset()):
            return _DENIED
        if action == "push" and self._manners.is_linked_elsewhere:
            return _LINKED_ELSEWHERE
        return None


class SignedUrls:
    """Makes and checks the URLs under which the storage hands out blobs."""

    def __init__(self, manners: Manners) -> None:
        self._manners = manners
        self._key = secrets.token_bytes(16)
        self._epoch = 0

    def expire(self) -> None:
        self._epoch += 1

    def make(self, storage_host: str, digest: Digest) -> str:
        """Sign a path and a time; the signature always has characters that must stay percent-encoded."""
        expires = f"{time.time() + self._manners.url_seconds:.3f}"
        path = f"/ghcr/blobs/{digest}"
        signature = quote(self._signature(path, expires), safe="")
        return f"http://{storage_host}{quote(path)}?se={expires}&sp=r&sig={signature}"

    def check(self, raw_path: str) -> tuple[Digest | None, str]:
        """Read path and query as they were sent; without a digest, the reason is given."""
        url = urlsplit(raw_path)
        query = dict(parse_qsl(url.query))
        path = url.path.replace("%3A", ":")
        expires = query.get("se", "0")
        if not hmac.compare_digest(query.get("sig", "").encode(), self._signature(path, expires).encode()):
            return None, "the signature does not match, or has been revoked"
        if float(expires) < time.time():
            return None, "the signature has expired"
        try:
            return Digest.parse(path.removeprefix("/ghcr/blobs/")), ""
        except FormatError as error:
            return None, str(error)

    def _signature(self, path: str, expires: str) -> str:
        mac = hmac.digest(self._key, f"{path}\n{expires}\n{self._epoch}".encode(), hashlib.sha256)
        return "v+/" + base64.b64encode(mac).decode()
