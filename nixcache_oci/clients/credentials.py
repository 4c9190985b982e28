"""Credentials for a registry, and which of them it may receive.

In order of precedence:

1. ``NIXCACHE_TOKEN_FILE``, for any registry: it is set for the one that is configured.
2. ``NIXCACHE_TOKEN``, likewise, for CI secrets.
3. ``GITHUB_TOKEN``, then ``GH_TOKEN``, only for GitHub's registries and registries on this machine: they are
   set in many shells and every workflow, and must never reach another registry.
4. Logins that docker and podman keep: see ``auth_file``.
5. None: anonymous.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from yarl import URL

from nixcache_oci.errors import UsageError
from nixcache_oci.oci.reference import is_loopback

TOKEN_FILE_VARIABLE: Final = "NIXCACHE_TOKEN_FILE"  # noqa: S105  the name of a variable, no secret
TOKEN_VARIABLE: Final = "NIXCACHE_TOKEN"  # noqa: S105  as above
_GITHUB_VARIABLES: Final = ("GITHUB_TOKEN", "GH_TOKEN")
_GITHUB: Final = "ghcr.io"
_ENTERPRISE: Final = ".ghe.com"
_ANY_USER: Final = "nixcache-oci"  # the token identifies the user, but Basic needs some name
_AROUND: Final = "\ufeff \t\r\n"  # editors add a byte order mark and line ends


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password; also a ``CredentialSource`` that never changes."""

    username: str  # for Basic
    password: str = field(repr=False)  # or token; never shown
    source: str  # where it was found, for people
    is_identity_token: bool = False  # whether the password is an OAuth2 refresh token, such as docker keeps
    is_ambient: bool = False  # whether it was in the environment for other purposes; see ``may_receive``

    @property
    def current(self) -> "Credentials":
        """Return themselves."""
        return self

    async def find(self, *, refused: "Credentials | None" = None) -> "Credentials":
        """Return themselves."""
        del refused
        return self


class CredentialSource(Protocol):
    """A source of credentials, which may change while the program runs."""

    @property
    def current(self) -> Credentials | None:
        """The credentials found last; None means anonymous."""

    async def find(self, *, refused: Credentials | None = None) -> Credentials | None:
        """Look for credentials; cheap enough for each request.

        After the registry refused ``refused``, it looks again at once.
        """


def choose_variable(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Choose among the variables that hold a token themselves; an empty one counts as unset.

    Raises UsageError if ``NIXCACHE_TOKEN`` holds no token. ``host`` is the registry's ``host[:port]``.
    """
    token = environment.get(TOKEN_VARIABLE, "").strip(_AROUND)
    if token:
        return parse_token(token, TOKEN_VARIABLE)
    if is_github(host) or is_loopback(host):
        for name in _GITHUB_VARIABLES:
            if token := environment.get(name, "").strip(_AROUND):
                return Credentials(_ANY_USER, token, name, is_ambient=True)
    return None


def parse_token(text: str, source: str) -> Credentials:
    """Read a token, or ``user:password``, without white space and a byte order mark around it.

    Raises UsageError, which shows ``source`` and not the text, if it is empty, or not one line.
    """
    secret = text.strip(_AROUND)
    if not secret:
        raise UsageError(f"{source} is empty; it should hold a token, or user:password")
    if not secret.isprintable():
        raise UsageError(f"{source} should hold one line: a token, or user:password")
    user, colon, password = secret.partition(":")
    return Credentials(user, password, source) if colon else Credentials(_ANY_USER, secret, source)


def may_receive(realm: URL, registry: URL) -> bool:
    """Tell whether a token service may receive ``GITHUB_TOKEN``, which was not set for this registry.

    It may if it is on the registry's own host, over https unless that is this machine, or at GitHub, which
    issued the token. ``realm`` is its URL, from the registry's challenge.
    """
    host, own = bracketed_host(realm), bracketed_host(registry)
    if is_loopback(host):
        return is_loopback(own)
    return realm.scheme == "https" and (host == own or _is_same_github(host, own))


def bracketed_host(url: URL) -> str:
    """Return a URL's host as ``is_loopback`` reads it; empty if it has none."""
    host = (url.host or "").lower()
    return f"[{host}]" if ":" in host else host


def find_enterprise(host: str) -> str | None:
    """Return the ``NAME.ghe.com`` that a host is below, as ``containers.NAME.ghe.com`` is; else None."""
    name = host.lower().removesuffix(":443")
    if not name.endswith(_ENTERPRISE):
        return None
    return f"{name.removesuffix(_ENTERPRISE).rpartition('.')[2]}{_ENTERPRISE}"


def is_github(host: str) -> bool:
    """Tell whether a registry is GitHub's: ghcr.io, or an enterprise's."""
    return host.lower().removesuffix(":443") == _GITHUB or find_enterprise(host) is not None


def _is_same_github(host: str, own: str) -> bool:
    """Tell whether both are of one GitHub: github.com, or one enterprise."""
    enterprise = find_enterprise(own)
    return host == _GITHUB if enterprise is None else f".{host}".endswith(f".{enterprise}")
