"""Who may do what at the GHCR double: registry tokens, passwords, and signed URLs of the storage."""

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from aiohttp import BasicAuth

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.ghcr_manners import Manners
from tests.support.ghcr_store import GhcrStore
from tests.support.ghcr_wire import Answer, json_answer, oci_error

_URL_SECONDS = 300.0
_SCOPE = re.compile(r"repository:(?P<name>[^:\s]+):(?P<actions>[a-z*,]+)")
_DENIED = oci_error(403, "DENIED", "requested access to the resource is denied")
_LINKED_ELSEWHERE = oci_error(403, "DENIED", "permission_denied: write_package")


@dataclass(frozen=True, slots=True)
class _Grant:
    rights: Mapping[str, frozenset[str]]
    expires: float
    epoch: int


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

    def is_public(self, name: str | None) -> bool:
        """Whether anybody may read this repository."""
        manners = self._manners
        return (
            (not manners.private or name in manners.public) and name is not None and self._store.exists(name)
        )

    def answer(self, authorization: str | None, scopes: list[str]) -> Answer:
        """Answer a request for a token: unknown credentials are refused even where none are needed."""
        wanted = {
            match["name"]: frozenset(match["actions"].split(","))
            for scope in " ".join(scopes).split()
            if (match := _SCOPE.fullmatch(scope))
        }
        if self._manners.refuses_delete_scope and any("delete" in actions for actions in wanted.values()):
            return oci_error(400, "INVALID_REQUEST", "Unable to decode repository and actions")
        if authorization is None:
            if not wanted or not all(map(self.is_public, wanted)):
                return _DENIED
            rights = frozenset({"pull"})
        else:
            rights = self.rights_of(BasicAuth.decode(authorization).password)
            if not rights:
                return _DENIED
        token = secrets.token_urlsafe(24)
        granted = {name: actions & rights for name, actions in wanted.items()}
        self._grants[token] = _Grant(granted, time.monotonic() + self._manners.token_seconds, self._epoch)
        lifetime = {"expires_in": self._manners.token_seconds} if self._manners.tells_token_seconds else {}
        return json_answer(200, {"token": token, **lifetime})

    def refusal(self, host: str, authorization: str | None, name: str | None, action: str) -> Answer | None:
        """Check a request to the registry; None lets it pass. Without a name any good token will do."""
        if name is not None and authorization is None and self._manners.anonymous_status != 401:
            status = self._manners.anonymous_status
            return oci_error(status, "NAME_UNKNOWN" if status == 404 else "DENIED", "no such repository")
        if self._manners.is_basic:
            return self._refuse_password(host, authorization, name, action)
        if self._manners.name_parts not in {None, len((name or "").split("/"))} and name:
            authorization = None
        scheme, _, token = (authorization or "").partition(" ")
        grant = self._grants.get(token) if scheme.lower() == "bearer" else None
        if grant is None or grant.epoch != self._epoch or time.monotonic() > grant.expires:
            actions = "pull" if action == "pull" else "pull,push"
            path = self._manners.token_path
            scope = f"repository:{name}:{actions}" if name else "repository:user/image:pull"
            challenge = (
                f'Bearer realm="http://{host}{path}",service="{self._manners.service}",scope="{scope}"'
            )
            return oci_error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        return self._refuse_action(name, action, grant.rights.get(name or "", frozenset()))

    def _refuse_password(
        self, host: str, authorization: str | None, name: str | None, action: str
    ) -> Answer | None:
        scheme, _, password = (authorization or "").partition(" ")
        rights = frozenset[str]()
        if scheme.lower() == "basic":
            rights = self.rights_of(BasicAuth.decode(f"{scheme} {password}").password)
        elif self.is_public(name) and action == "pull":
            rights = frozenset({"pull"})
        if rights:
            return self._refuse_action(name, action, rights)
        if authorization is not None and self._manners.wrong_password_status == 403:
            return oci_error(
                403, "DENIED", "Your authorization token has expired. Reauthenticate and try again."
            )
        challenge = {"WWW-Authenticate": f'Basic realm="http://{host}/",service="{self._manners.service}"'}
        return oci_error(401, "UNAUTHORIZED", "authentication required", challenge)

    def _refuse_action(self, name: str | None, action: str, rights: frozenset[str]) -> Answer | None:
        if name and action not in rights:
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
        expires = f"{time.time() + _URL_SECONDS:.3f}"
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
