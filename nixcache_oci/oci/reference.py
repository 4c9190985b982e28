"""References: a repository at a registry, and tags or digests in it.

Sources: OCI distribution specification, "Pulling manifests" (names and tags); RFC 3986 (hosts).
"""

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest

_AUTHORITY = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::(?P<port>[0-9]{1,5}))?")
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_MAX_DNS_NAME = 253  # characters; RFC 1035 less the length bytes
_MAX_PORT = 65535

_REPOSITORY_PART = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_REPOSITORY_PART}(/{_REPOSITORY_PART})*")
_PART = re.compile(_REPOSITORY_PART)
# What fit_repository makes; a name that looks like it gets a hash of its own.
_FITTED_PART = re.compile(r".*\.x[0-9a-f]{16}")
_FIT_DIGITS = 16
_MAX_REPOSITORY = 255  # characters; recommended by the specification, and enforced by registries

# Docker Hub's names, and its API host.
_API_HOSTS = dict.fromkeys(("docker.io", "index.docker.io"), "registry-1.docker.io")

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """A repository at a registry; ``str()`` gives ``ghcr.io/owner/name/nix-cache``."""

    host: str  # ``name``, ``name:port``, ``[IPv6]`` or ``[IPv6]:port``, in lower case
    plain_http: bool  # HTTP without TLS
    repository: str  # in lower case

    def __post_init__(self) -> None:
        _check_host(self.host)
        if not is_repository(self.repository):
            raise FormatError(
                f"repository {self.repository[:80]!r}: registries take lower-case letters and digits, "
                f"separated by '/', '.', '_', '__' or dashes, at most {_MAX_REPOSITORY} characters"
            )

    @classmethod
    def of(cls, registry: str, repo: str, image: str) -> Self:
        """Build a reference from user input; FormatError names an invalid part.

        Args:
            registry: ``host[:port]``; an ``http://`` prefix asks for plain HTTP, the default of loopback
                hosts, and ``https://`` for TLS.
            repo: GitHub's ``owner/name``, in any case; may be empty.
            image: the last part of the name.
        """
        if "@" in registry:  # not shown: it may be a password
            raise FormatError("registry: user and password do not belong in the address")
        scheme, separator, host = registry.rpartition("://")
        scheme = scheme.lower()
        host = host.removesuffix("/").lower()
        host = _API_HOSTS.get(host, host)
        if scheme not in ("", "http", "https") or (separator and not scheme):
            named = f"{scheme[:20]}://" if scheme.isalnum() else "this"
            raise FormatError(f"registry {registry[:80]!r}: {named} is not supported, only http and https")
        if "/" in host:
            raise FormatError(
                f"registry {registry[:80]!r}: only host[:port] belongs here, without a path;"
                " the path is made of the repository (owner/name) and the image"
            )
        plain_http = scheme == "http" or (scheme == "" and is_loopback(host))
        return cls(host, plain_http, "/".join(part for part in (repo.lower(), image.lower()) if part))

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"

    @property
    def base_url(self) -> str:
        """The registry's URL, without a trailing slash: ``https://ghcr.io``."""
        return f"{'http' if self.plain_http else 'https'}://{self.host}"


def fit_repository(name: str) -> str:
    """Convert the name of a Git repository, of any depth, to a valid repository name.

    Registries are stricter than GitHub, which allows ``.github``, ``name-`` and ``_x``. A valid part stays,
    in lower case: Git hosts ignore case. Any other part keeps its valid characters, followed by a hash of the
    whole part: ``github.xbdcc6a…``. No two parts collide: one that looks like such a result is hashed too.
    Separators are never repeated, which some registries refuse.
    """
    return "/".join(_fit_part(part) for part in name.lower().split("/"))


def _fit_part(part: str) -> str:
    if _PART.fullmatch(part) and not _FITTED_PART.fullmatch(part):
        return part
    readable = "-".join(re.findall(r"[a-z0-9]+", part)) or "repository"
    return f"{readable}.x{hashlib.sha256(part.encode()).hexdigest()[:_FIT_DIGITS]}"


def is_repository(name: str) -> bool:
    """Check whether this is a valid repository name."""
    return len(name) <= _MAX_REPOSITORY and _REPOSITORY.fullmatch(name) is not None


def is_tag(text: str) -> bool:
    """Check whether this is a valid tag."""
    return _TAG.fullmatch(text) is not None


def parse_tag_or_digest(text: str) -> str | Digest:
    """Parse a tag, which stays text, or a digest; FormatError if it is neither."""
    if ":" in text:
        return Digest.parse(text)
    if not is_tag(text):
        raise FormatError(
            f"tag {text[:140]!r}: expected 1 to 128 letters, digits, '.', '_' or '-',"
            " the first neither '.' nor '-'"
        )
    return text


def _check_host(host: str) -> None:
    """Check ``host[:port]``; FormatError for anything else."""
    match = _AUTHORITY.fullmatch(host)
    if match is None:
        hint = " (an IPv6 address needs brackets)" if host.count(":") > 1 else ""
        raise FormatError(f"registry {host[:80]!r}: expected host or host:port{hint}")
    name, port = match["name"], match["port"]
    if port is not None and not 0 < int(port) <= _MAX_PORT:
        raise FormatError(f"registry {host[:80]!r}: a port is between 1 and {_MAX_PORT}")
    if name.startswith("["):
        try:
            ipaddress.IPv6Address(name[1:-1])
        except ValueError as error:
            raise FormatError(f"registry {host[:80]!r}: {error}") from error
    elif len(name) > _MAX_DNS_NAME or not _DNS_NAME.fullmatch(name):
        raise FormatError(f"registry {host[:80]!r}: {name[:80]!r} is not the name of a host")


def is_loopback(host: str) -> bool:
    """Tell whether ``host[:port]`` is this machine: localhost, or a loopback address."""
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
