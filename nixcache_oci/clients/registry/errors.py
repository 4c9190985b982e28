"""Error texts: one line with operation, repository, the registry's answer, and a hint what to do.

GHCR answers 403 DENIED for every missing permission, and only its message says which. It is read for any
host, because mirrors pass it on.

Sources: GitHub's documentation, "Working with the Container registry" and "About permissions for GitHub
Packages"; OCI distribution specification, "Error Codes"; answers of GHCR and Harbor that users report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from nixcache_oci.clients.credentials import TOKEN_FILE_VARIABLE, find_enterprise, is_github
from nixcache_oci.clients.http.errors import HttpError, parse_error
from nixcache_oci.clients.http.retry import GiveUp, is_rate_limit
from nixcache_oci.clients.http.translation import CLOSED_EARLY, NOT_HTTP
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.reference import is_loopback
from nixcache_oci.wording import counted

_DENIALS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_NO_ROOM: Final = frozenset({HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.INSUFFICIENT_STORAGE})
_NO_ROOM_WORDS: Final = ("quota", "billing", "storage limit", "spending limit", "no space left")
_NO_PUSHING: Final = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a request was made for."""

    host: str  # of the registry, ``host[:port]``
    repository: str  # its name within the registry
    push: bool  # whether pushing was wanted
    source: str | None  # of the credentials; None for anonymous


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A registry's error."""

    status: int | None  # of HTTP; None without an answer
    code: str = ""  # of the OCI error document, or an empty string
    message: str = ""  # its text, or an empty string
    size: int | None = None  # of the request's body in bytes, or None
    is_about_token: bool = False  # whether the token service answered
    is_elsewhere: bool = False  # whether a server that the registry redirected to answered
    is_limit: bool = False  # whether it is a rate limit
    is_manifest: bool = False  # whether the body is a manifest or index, not a blob


def find_hint(context: RequestContext, response: ErrorResponse) -> str:
    """Say what to do; empty if nothing is known to help."""
    status = response.status
    if status is None or response.is_limit:
        return _await_limit(context) if response.is_limit else ""
    if status in _NO_ROOM or (status >= HTTPStatus.BAD_REQUEST and _says(response, *_NO_ROOM_WORDS)):
        return _make_room(context, response)
    if hint := _change_request(response):
        return hint
    if response.size is not None and (
        status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or response.code == "SIZE_INVALID"
    ):
        return _send_less(response)
    if status in _DENIALS and not response.is_elsewhere:
        return _get_permission(context, response)
    return _find_registry(context, response) if context.push and not response.is_elsewhere else ""


def _says(response: ErrorResponse, *words: str) -> bool:
    message = response.message.lower()
    return any(word in message for word in words)


def _await_limit(context: RequestContext) -> str:
    if context.source is None:
        return f"asked anonymously, but credentials may raise the limit: {_set_credentials(context)}"
    return "run it again later; what was sent is not sent again" if context.push else ""


def _make_room(context: RequestContext, response: ErrorResponse) -> str:
    if is_github(context.host) or _says(response, "billing"):
        owner = context.repository.partition("/")[0]
        web = _web(context.host)
        return (
            f"the storage of {owner} is used up or its billing is blocked: see {web}/settings/billing (of an "
            f"organization: {web}/organizations/{owner}/settings/billing); public packages need no quota"
        )
    return "the registry has no room left: remove what is not needed there, or let its owner raise the quota"


def _change_request(response: ErrorResponse) -> str:
    """Give the hint for a name, tag or manifest that only some registries refuse; empty if it is none."""
    if response.code == "NAME_INVALID":
        return (
            "set NIXCACHE_REPO and NIXCACHE_IMAGE (- for none) to a name that it takes: Forgejo and Gitea"
            " take neither -- nor __, and Docker Hub exactly two parts"
        )
    if not response.is_manifest:
        return ""
    if response.code == "TAG_IMMUTABLE" or _says(response, "immutable"):
        return (
            "cache-index has to be moved by every publish: exclude it from the rule that makes tags immutable"
        )
    if _says(response, "number of layers", "too many layers"):
        return "set NIXCACHE_MAX_LAYERS to what it takes (490 at Amazon's), so that segments become smaller"
    return ""


def _send_less(response: ErrorResponse) -> str:
    size = counted(response.size or 0, "byte")
    if response.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return f"sending {size}: more than it accepts, or the file changed in the meantime"
    setting = (
        "lower NIXCACHE_MAX_LAYERS, and let gc merge segments"
        if response.is_manifest
        else "set NIXCACHE_MAX_BLOB_BYTES to it (1M for nginx with its defaults): packs and tables stay "
        "below it, and a path that is larger by itself is named and left out"
    )
    return (
        f"it has {size}, more than the registry or a server in front of it takes: raise that "
        f"limit (client_max_body_size of nginx), or {setting}"
    )


def _get_permission(context: RequestContext, response: ErrorResponse) -> str:
    if context.source is None:
        need = "pushing needs credentials" if context.push else "a private repository needs credentials"
        return f"asked anonymously, and {need}: {_set_credentials(context)}"
    asked = f"asked with {context.source}"
    permission = "write" if context.push else "read"
    at_github = _find_github_permission(context, response, permission)
    if at_github:
        return f"{asked}, {at_github}"
    if response.is_about_token:
        asked += ", which is wrong or has expired, or lacks a right: renew it; it"
    else:
        asked += ", which"
    if is_github(context.host):
        return (
            f"{asked} needs {_github_right(permission)}, and the package must be open to it: {_open(context)}"
        )
    quota = (
        "; as it gives no reason, it may also be a quota: see whether there is room left"
        if response.size is not None and not (response.code or response.message)
        else ""
    )
    return f"{asked} needs {permission} access to this repository{quota}"


def _find_github_permission(context: RequestContext, response: ErrorResponse, permission: str) -> str:
    """Give the hint for GHCR's message; empty if it says nothing."""
    if _says(response, "write_package", "read_package"):
        return (
            "and the package is linked to another repository or was first pushed manually: "
            f"{_open(context)}; besides, it needs {_github_right(permission)}"
        )
    if _says(response, "installation not allowed"):
        return (
            f"and the workflow needs permissions: packages: {permission} (a pull request from a fork never "
            "has it, and an organization may forbid new packages)"
        )
    if _says(response, "expected scopes"):
        return f"and the token lacks a scope: make a classic personal one with {permission}:packages"
    if _says(response, "saml"):
        return (
            f"and the organization requires it to be authorized for SSO: {_web(context.host)}/settings/tokens"
        )
    if _says(response, "cannot be authenticated"):
        return f"which is wrong or has expired: renew it, with {_github_right(permission)}"
    return ""


def _github_right(permission: str) -> str:
    return (
        f"permissions: packages: {permission} in a workflow, or {permission}:packages as a classic personal "
        "token"
    )


def _open(context: RequestContext) -> str:
    """Say where a package is opened to a repository; organizations and users have different URLs."""
    owner, _, package = context.repository.partition("/")
    role = "Write" if context.push else "Read"
    return (
        f"Package settings, Manage Actions access, add the repository with role {role}, at "
        f"{_web(context.host)}/orgs/{owner}/packages/container/{quote(package, safe='')}/settings"
        " (of a user: /users/ for /orgs/)"
    )


def _web(host: str) -> str:
    """Return the URL of the GitHub that a registry belongs to."""
    return f"https://{find_enterprise(host.partition(':')[0]) or 'github.com'}"


def _set_credentials(context: RequestContext) -> str:
    ways = [TOKEN_FILE_VARIABLE]
    if is_github(context.host) or is_loopback(context.host):
        ways.append("GITHUB_TOKEN")
    return f"set {' or '.join(ways)}, or run docker login {context.host}"


def _find_registry(context: RequestContext, response: ErrorResponse) -> str:
    """Explain a failed push to something that is no registry, or one that accepts no pushes."""
    status = response.status
    if status in _NO_PUSHING:
        return f"{context.host} accepts no pushes here: is it a read-only mirror?"
    if status == HTTPStatus.NOT_FOUND and response.code == "NAME_UNKNOWN":
        return "this registry needs the repository to be created before the first push"
    is_redirect = status is not None and status // 100 == HTTPStatus.MULTIPLE_CHOICES // 100
    if is_redirect or (status == HTTPStatus.NOT_FOUND and not response.code):
        return f"this is not how a registry answers: is {context.host} one, and is nothing in between?"
    return ""


# From the answers of Go's servers, nginx, Apache and others.
_TLS_WORDS = (b"https", b"ssl-enabled", b"tls")
_ABSENT = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "TAG_UNKNOWN", "NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class Explainer:
    """Turns failures into the errors that callers see."""

    host: str  # of the registry, ``host[:port]``
    name: str  # of the repository, for people
    push: bool  # whether pushing was wanted
    plain_http: bool  # whether the registry is reached without TLS
    source: Callable[[], str | None]  # returns the source of the credentials in use; None for anonymous

    def explain(
        self,
        operation: str,
        cause: HttpError,
        end: GiveUp,
        *,
        may_be_absent: bool,
        size: int | None = None,
        is_manifest: bool = False,
    ) -> RegistryError:
        """Make the error for the end of an operation, such as ``get manifest cache-index``.

        If it may be absent, the registry may say that it has no such thing. It must do so by an error
        document: another server's 404 does not mean that the cache is empty. ``size`` is the request body's,
        in bytes.
        """
        failure = cause.failure
        status = failure.status
        is_absent = (
            may_be_absent
            and status == HTTPStatus.NOT_FOUND
            and cause.code in _ABSENT
            and not failure.is_elsewhere
            and not cause.is_about_token
        )
        hints = [f"{operation}: {self.name}: {cause.reason}"]
        if end.retry_after is not None:
            hints.append(f"it asks to wait {end.retry_after:.0f} s")
        if status == HTTPStatus.NOT_FOUND and may_be_absent and not is_absent:
            hints.append("this is not how a registry says that something is absent: is something in between?")
        elif not is_absent and (hint := self._find_hint(cause, size, is_manifest=is_manifest)):
            hints.append(hint)
        error = NotFoundError if is_absent else RegistryError
        return error(
            "; ".join(hints),
            status=status,
            code=cause.code,
            is_temporary=end.is_temporary,
            retry_after=end.retry_after,
        )

    def _find_hint(self, cause: HttpError, size: int | None, *, is_manifest: bool) -> str:
        failure = cause.failure
        if self.plain_http and not failure.is_elsewhere and not cause.is_about_token:
            hint = find_tls_hint(self.host, failure.status, failure.body, cause.reason)
            if hint:
                return hint
        context = RequestContext(self.host, self.name.removeprefix(f"{self.host}/"), self.push, self.source())
        response = ErrorResponse(
            failure.status,
            cause.code,
            parse_error(failure.body)[1],
            size,
            is_about_token=cause.is_about_token,
            is_elsewhere=failure.is_elsewhere,
            is_limit=is_rate_limit(failure),
            is_manifest=is_manifest,
        )
        return find_hint(context, response)


def find_tls_hint(host: str, status: int | None, body: bytes, reason: str = "") -> str:
    """Give a hint if a registry that was asked without TLS seems to want it; otherwise empty.

    Servers differ: some answer 400 with a message, some answer in TLS, some hang up, for this ``reason``.
    """
    if status == HTTPStatus.BAD_REQUEST and any(word in body.lower() for word in _TLS_WORDS):
        return f"it speaks TLS: write https://{host}"
    if status is None and reason in {CLOSED_EARLY, NOT_HTTP}:
        return f"it was asked without TLS: if it speaks TLS, write https://{host}"
    return ""
