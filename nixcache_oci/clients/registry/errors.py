"""How a failure is told: one line with operation, repository, what was answered, and what to do about it.

GHCR answers every lack of a permission with 403 DENIED and tells them apart by its words only. These are
looked for whatever the host is called, since a mirror passes them on.

Sources: GitHub's documentation, "Working with the Container registry" and "About permissions for GitHub
Packages"; OCI distribution specification, "Error Codes"; answers of GHCR and Harbor that users report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import quote

from nixcache_oci.clients.credentials import TOKEN_FILE_VARIABLE, is_github, is_loopback
from nixcache_oci.clients.http.errors import CLOSED_EARLY, NOT_HTTP, HttpError, parse_error
from nixcache_oci.clients.http.retry import GiveUp, is_rate_limit
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.wording import counted

_DENIALS: Final = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_NO_ROOM: Final = frozenset({HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.INSUFFICIENT_STORAGE})
_NO_ROOM_WORDS: Final = ("quota", "billing", "storage limit", "spending limit", "no space left")
_NO_PUSHING: Final = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})
_ENTERPRISE: Final = "containers."  # in front of an enterprise's own host name


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asked.

    Attributes:
        host: of the registry, ``host[:port]``.
        repository: its name within the registry.
        push: whether pushing was wanted.
        source: where the credentials come from; None while anonymous.
    """

    host: str
    repository: str
    push: bool
    source: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What was said.

    Attributes:
        status: of HTTP; None where no answer came.
        code: of the OCI error document, or an empty string.
        message: its text, or an empty string.
        size: bytes that the request carried, or None.
        is_about_token: whether the token service said it.
        is_elsewhere: whether a server said it that the registry sent us to.
        is_limit: whether it is a limit on the rate of requests, which passes.
        is_manifest: whether the request carried a manifest or index, and no blob.
    """

    status: int | None
    code: str = ""
    message: str = ""
    size: int | None = None
    is_about_token: bool = False
    is_elsewhere: bool = False
    is_limit: bool = False
    is_manifest: bool = False


def find_remedy(asker: Asker, refusal: Refusal) -> str:
    """Say what to do; an empty string where nothing is known to help."""
    status = refusal.status
    if status is None:
        return ""
    if refusal.is_limit:
        return _await_limit(asker)
    if status in _NO_ROOM or (status >= HTTPStatus.BAD_REQUEST and _says(refusal, *_NO_ROOM_WORDS)):
        return _make_room(asker, refusal)
    if refusal.size is not None and (
        status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or refusal.code == "SIZE_INVALID"
    ):
        return _send_less(refusal)
    if status in _DENIALS and not refusal.is_elsewhere:
        return _get_permission(asker, refusal)
    return _find_registry(asker, refusal) if asker.push and not refusal.is_elsewhere else ""


def _says(refusal: Refusal, *words: str) -> bool:
    message = refusal.message.lower()
    return any(word in message for word in words)


def _await_limit(asker: Asker) -> str:
    if asker.source is None:
        return f"asked anonymously, but credentials may raise the limit: {_set_credentials(asker)}"
    return "run it again later; what was sent is not sent again" if asker.push else ""


def _make_room(asker: Asker, refusal: Refusal) -> str:
    if is_github(asker.host) or _says(refusal, "billing"):
        owner = asker.repository.partition("/")[0]
        web = _web(asker.host)
        return (
            f"the storage of {owner} is used up or its billing is blocked: see {web}/settings/billing (of an "
            f"organization: {web}/organizations/{owner}/settings/billing); public packages need no quota"
        )
    return "the registry has no room left: remove what is not needed there, or let its owner raise the quota"


def _send_less(refusal: Refusal) -> str:
    size = counted(refusal.size or 0, "byte")
    if refusal.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return f"sending {size}: more than it accepts, or the file changed in the meantime"
    setting = (
        "lower NIXCACHE_MAX_LAYERS, and let gc merge segments"
        if refusal.is_manifest
        else "set NIXCACHE_MAX_BLOB_BYTES to it (1M for nginx with its defaults): packs and tables stay "
        "below it, and a path that is larger by itself is named and left out"
    )
    return (
        f"it has {size}, more than the registry or a server in front of it takes: raise that "
        f"limit (client_max_body_size of nginx), or {setting}"
    )


def _get_permission(asker: Asker, refusal: Refusal) -> str:
    if asker.source is None:
        need = "pushing needs credentials" if asker.push else "a private repository needs credentials"
        return f"asked anonymously, and {need}: {_set_credentials(asker)}"
    asked = f"asked with {asker.source}"
    permission = "write" if asker.push else "read"
    at_github = _find_github_permission(asker, refusal, permission)
    if at_github:
        return f"{asked}, {at_github}"
    if refusal.is_about_token:
        asked += ", which is wrong or has expired, or lacks a right: renew it; it"
    else:
        asked += ", which"
    if is_github(asker.host):
        return (
            f"{asked} needs {_github_right(permission)}, and the package must be open to it: {_open(asker)}"
        )
    return f"{asked} needs {permission} access to this repository"


def _find_github_permission(asker: Asker, refusal: Refusal, permission: str) -> str:
    """Read GHCR's words; an empty string where they say nothing."""
    if _says(refusal, "write_package", "read_package"):
        return (
            "and the package is linked to another repository or was first pushed manually: "
            f"{_open(asker)}; besides, it needs {_github_right(permission)}"
        )
    if _says(refusal, "installation not allowed"):
        return (
            f"and the workflow needs permissions: packages: {permission} (a pull request from a fork never "
            "has it, and an organization may forbid new packages)"
        )
    if _says(refusal, "expected scopes"):
        return f"and the token lacks a scope: make a classic personal one with {permission}:packages"
    if _says(refusal, "saml"):
        return (
            f"and the organization requires it to be authorized for SSO: {_web(asker.host)}/settings/tokens"
        )
    if _says(refusal, "cannot be authenticated"):
        return f"which is wrong or has expired: renew it, with {_github_right(permission)}"
    return ""


def _github_right(permission: str) -> str:
    return (
        f"permissions: packages: {permission} in a workflow, or {permission}:packages as a classic personal "
        "token"
    )


def _open(asker: Asker) -> str:
    """Say where a package is opened to a repository; the two kinds of owner have two addresses."""
    owner, _, package = asker.repository.partition("/")
    role = "Write" if asker.push else "Read"
    return (
        f"Package settings, Manage Actions access, add the repository with role {role}, at {_web(asker.host)}"
        f"/orgs/{owner}/packages/container/{quote(package, safe='')}/settings (of a user: /users/ for /orgs/)"
    )


def _web(host: str) -> str:
    """Give the address of the GitHub that a registry belongs to."""
    name = host.partition(":")[0]
    if name.endswith(".ghe.com"):
        return f"https://{name.removeprefix(_ENTERPRISE)}"
    return "https://github.com"


def _set_credentials(asker: Asker) -> str:
    ways = [TOKEN_FILE_VARIABLE]
    if is_github(asker.host) or is_loopback(asker.host):
        ways.append("GITHUB_TOKEN")
    return f"set {' or '.join(ways)}, or run docker login {asker.host}"


def _find_registry(asker: Asker, refusal: Refusal) -> str:
    """Explain what a push meets where no registry is, or one that cannot be pushed to."""
    status = refusal.status
    if status in _NO_PUSHING:
        return f"{asker.host} accepts no pushes here: is it a read-only mirror?"
    if status == HTTPStatus.NOT_FOUND and refusal.code == "NAME_UNKNOWN":
        return "this registry needs the repository to be created before the first push"
    is_redirect = status is not None and status // 100 == HTTPStatus.MULTIPLE_CHOICES // 100
    if is_redirect or (status == HTTPStatus.NOT_FOUND and not refusal.code):
        return f"this is not how a registry answers: is {asker.host} one, and is nothing in between?"
    return ""


# Of Go's servers, nginx, Apache and others.
_TLS_WORDS = (b"https", b"ssl-enabled", b"tls")
_ABSENT = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "TAG_UNKNOWN", "NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class Explainer:
    """Turns what went wrong into the errors that callers see.

    Attributes:
        host: of the registry, ``host[:port]``.
        name: of the repository, for people.
        push: whether pushing was wanted.
        plain_http: whether it is spoken to without TLS.
        source: tells where the credentials in use come from; None while anonymous.
    """

    host: str
    name: str
    push: bool
    plain_http: bool
    source: Callable[[], str | None]

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
        """Make the error for the end of an operation.

        Args:
            operation: such as ``get manifest cache-index``.
            cause: the last one.
            end: why there is no other try.
            may_be_absent: whether the registry may say that it has no such thing. It must say so itself, by
                an error document: the 404 of something on the way does not mean that the cache is empty.
            size: bytes that the request carried, or None.
            is_manifest: whether these are a manifest.
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
        elif not is_absent and (remedy := self._find_remedy(cause, size, is_manifest=is_manifest)):
            hints.append(remedy)
        error = NotFoundError if is_absent else RegistryError
        return error(
            "; ".join(hints),
            status=status,
            code=cause.code,
            is_temporary=end.is_temporary,
            retry_after=end.retry_after,
        )

    def _find_remedy(self, cause: HttpError, size: int | None, *, is_manifest: bool) -> str:
        failure = cause.failure
        if self.plain_http and not failure.is_elsewhere and not cause.is_about_token:
            hint = find_tls_hint(self.host, failure.status, failure.body, cause.reason)
            if hint:
                return hint
        asker = Asker(self.host, self.name.removeprefix(f"{self.host}/"), self.push, self.source())
        refusal = Refusal(
            failure.status,
            cause.code,
            parse_error(failure.body)[1],
            size,
            is_about_token=cause.is_about_token,
            is_elsewhere=failure.is_elsewhere,
            is_limit=is_rate_limit(failure),
            is_manifest=is_manifest,
        )
        return find_remedy(asker, refusal)


def find_tls_hint(host: str, status: int | None, body: bytes, reason: str = "") -> str:
    """Say what to do where a registry that is spoken to without TLS wants it; empty where it does not say so.

    Servers differ: some answer 400 and say it in their own words, some answer in TLS, some hang up.

    Args:
        host: of the registry, ``host[:port]``.
        status: of its answer; None where none came.
        body: of its answer.
        reason: why none came.
    """
    if status == HTTPStatus.BAD_REQUEST and any(word in body.lower() for word in _TLS_WORDS):
        return f"it speaks TLS: write https://{host}"
    if status is None and reason in {CLOSED_EARLY, NOT_HTTP}:
        return f"it was asked without TLS: if it speaks TLS, write https://{host}"
    return ""
