"""What a client shows a registry, and which of it may be offered to which registry.

In this order:

1. ``NIXCACHE_TOKEN_FILE``, for any registry: who sets it means the one that is configured.
2. ``NIXCACHE_TOKEN``, in the same way, as CI hands a secret out.
3. ``GITHUB_TOKEN``, then ``GH_TOKEN``, for GitHub's registries and this machine's own only: they are set in
   many a shell and every workflow, and must never be offered to some other registry.
4. Logins that docker and podman keep: see ``auth_file``.
5. None: anonymous.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from yarl import URL

from nixcache_oci.errors import UsageError
from nixcache_oci.oci.reference import is_loopback_name

TOKEN_FILE_VARIABLE: Final = "NIXCACHE_TOKEN_FILE"  # noqa: S105  the name of a variable, no secret
TOKEN_VARIABLE: Final = "NIXCACHE_TOKEN"  # noqa: S105  as above
_GITHUB_VARIABLES: Final = ("GITHUB_TOKEN", "GH_TOKEN")
_GITHUB: Final = "ghcr.io"
_ENTERPRISE: Final = ".ghe.com"
_ANY_USER: Final = "nixcache-oci"  # a token alone tells who it is; the user's name only has to be there
_AROUND: Final = "\ufeff \t\r\n"  # editors add a byte order mark, and all sorts of line ends


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password; as a source, one that never changes.

    Attributes:
        username: as it goes into Basic.
        password: or token; never shown.
        source: where it was found, for people.
        is_identity_token: whether the password is an OAuth2 refresh token, such as docker keeps.
        is_ambient: whether it lay in the environment, not meant for this registry; see ``may_receive``.
    """

    username: str
    password: str = field(repr=False)
    source: str
    is_identity_token: bool = False
    is_ambient: bool = False

    @property
    def current(self) -> "Credentials":
        """Themselves."""
        return self

    async def find(self, *, refused: "Credentials | None" = None) -> "Credentials":
        """Give themselves."""
        del refused
        return self


class CredentialSource(Protocol):
    """Where credentials come from, which may be replaced while the program runs."""

    @property
    def current(self) -> Credentials | None:
        """What was found last; None means anonymous."""

    async def find(self, *, refused: Credentials | None = None) -> Credentials | None:
        """Look for credentials; cheap enough to be called for each request.

        Args:
            refused: what the registry has just refused: look again, however soon after the last time.
        """


def choose_variable(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Choose among the variables that hold a token themselves.

    Args:
        host: ``host[:port]`` of the registry.
        environment: the process's variables; an empty one counts as unset.

    Raises:
        UsageError: ``NIXCACHE_TOKEN`` holds what cannot be a token.
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
    """Read a token, or ``user:password``, white space and a byte order mark around it allowed.

    Args:
        text: what a user gave; never shown.
        source: where, for people.

    Raises:
        UsageError: it is empty, or not one line.
    """
    secret = text.strip(_AROUND)
    if not secret:
        raise UsageError(f"{source} is empty; it should hold a token, or user:password")
    if not secret.isprintable():
        raise UsageError(f"{source} should hold one line: a token, or user:password")
    user, colon, password = secret.partition(":")
    return Credentials(user, password, source) if colon else Credentials(_ANY_USER, secret, source)


def may_receive(realm: URL, registry: URL) -> bool:
    """Tell whether a token service may be shown ``GITHUB_TOKEN``, which nobody gave for this registry.

    It may at the registry's own host, over https unless that is this machine; and at GitHub, which issued it.

    Args:
        realm: where a registry says that tokens are issued.
        registry: its address.
    """
    host, own = _bracketed(realm), _bracketed(registry)
    if is_loopback(host):
        return is_loopback(own)
    return realm.scheme == "https" and (host == own or _is_same_github(host, own))


def _bracketed(url: URL) -> str:
    host = (url.host or "").lower()
    return f"[{host}]" if ":" in host else host


def _is_same_github(host: str, own: str) -> bool:
    """Tell github.com from the enterprises, and those from each other (``NAME.ghe.com`` and all below it)."""
    if not own.endswith(_ENTERPRISE):
        return host == _GITHUB
    name = own.removesuffix(_ENTERPRISE).rpartition(".")[2]
    return f".{host}".endswith(f".{name}{_ENTERPRISE}")


def is_github(host: str) -> bool:
    """Tell whether a registry is GitHub's: ghcr.io, or one of an enterprise (``containers.NAME.ghe.com``)."""
    name = host.lower().removesuffix(":443")
    return name == _GITHUB or name.endswith(_ENTERPRISE)


def is_loopback(host: str) -> bool:
    """Tell whether ``host[:port]`` is this machine."""
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    return is_loopback_name(name)
