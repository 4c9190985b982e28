"""Where a registry's credentials come from, in this order.

1. ``NIXCACHE_TOKEN_FILE``, else ``NIXCACHE_TOKEN``, for any registry: who sets it means it.
2. ``GITHUB_TOKEN``, then ``GH_TOKEN``, for GitHub's registries and this machine's own only: they are set in
   many a shell and every workflow, and must never be offered to some other registry.
3. docker's ``config.json``. Its credential helpers are not run: nothing here starts programs.
4. None: anonymous.

Source of the third: the docker manual, "docker login", and containers-auth.json(5).
"""

import base64
import binascii
import ipaddress
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL

from nixcache_oci.errors import UsageError

TOKEN_FILE_VARIABLE = "NIXCACHE_TOKEN_FILE"  # noqa: S105  the name of a variable, no secret
_TOKEN_VARIABLE = "NIXCACHE_TOKEN"  # noqa: S105  as above
_GITHUB_VARIABLES = ("GITHUB_TOKEN", "GH_TOKEN")
_GITHUB = "ghcr.io"
_ENTERPRISE = ".ghe.com"
_ANY_USER = "nixcache-oci"  # a token alone tells who it is; the user's name only has to be there
_DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client shows a registry, or its token service.

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


def load_credentials(host: str, environment: Mapping[str, str]) -> Credentials | None:
    """Find the credentials for a registry; None means anonymous.

    Args:
        host: ``host[:port]``.
        environment: the process's variables.

    Raises:
        UsageError: the token file cannot be read, or holds no token.
    """
    token = None
    if token_file := environment.get(TOKEN_FILE_VARIABLE):
        try:
            token = Path(token_file).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
            raise UsageError(f"{TOKEN_FILE_VARIABLE}: {token_file} cannot be read: {reason}") from error
    path = find_docker_config(environment)
    return choose_credentials(host, environment, token, _read_docker_config(path), str(path))


def find_docker_config(environment: Mapping[str, str]) -> Path:
    """Tell where docker's configuration lies, if there is one."""
    if folder := environment.get("DOCKER_CONFIG"):
        return Path(folder) / "config.json"
    return Path(environment.get("HOME") or "/") / ".docker" / "config.json"


def choose_credentials(
    host: str,
    environment: Mapping[str, str],
    token_file: str | None,
    docker_config: str | None,
    docker_config_name: str = "docker config",
) -> Credentials | None:
    """Choose from what was read; the order is at the top of this file.

    Args:
        host: ``host[:port]`` of the registry.
        environment: the process's variables.
        token_file: content of the file that ``NIXCACHE_TOKEN_FILE`` names, or None where it is not set.
        docker_config: content of docker's ``config.json``, or None where there is none.
        docker_config_name: what to call it.

    Raises:
        UsageError: the token file holds no token.
    """
    if token_file is not None:
        name = environment.get(TOKEN_FILE_VARIABLE, "")
        return _parse_token(token_file, f"{TOKEN_FILE_VARIABLE}: {name}", f"{TOKEN_FILE_VARIABLE} ({name})")
    if token := environment.get(_TOKEN_VARIABLE, "").strip():
        return _parse_token(token, f"{_TOKEN_VARIABLE}: it", _TOKEN_VARIABLE)
    if is_github(host) or is_loopback(host):
        for name in _GITHUB_VARIABLES:
            if token := environment.get(name, "").strip():
                return Credentials(_ANY_USER, token, name, is_ambient=True)
    if docker_config is not None:
        return _search_docker_config(host, docker_config, docker_config_name)
    return None


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
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _parse_token(text: str, subject: str, source: str) -> Credentials:
    secret = text.strip()
    if not secret:
        raise UsageError(f"{subject} is empty; it should hold a token, or user:password")
    if "\n" in secret or "\r" in secret:
        raise UsageError(f"{subject} should hold one line: a token, or user:password")
    user, colon, password = secret.partition(":")
    return Credentials(user, password, source) if colon else Credentials(_ANY_USER, secret, source)


def _read_docker_config(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        _log.warning("%s cannot be read (%s): going on without it", path, reason)
        return None


def _search_docker_config(host: str, text: str, name: str) -> Credentials | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        _log.warning("%s is not JSON: going on without it", name)
        return None
    if not isinstance(document, dict):
        _log.warning("%s is not a JSON object: going on without it", name)
        return None
    auths = document.get("auths")
    for key, entry in auths.items() if isinstance(auths, dict) else ():
        if _is_key_of(key, host) and isinstance(entry, dict) and (found := _read_entry(entry, name)):
            return found
    helpers = document.get("credHelpers")
    if document.get("credsStore") or (
        isinstance(helpers, dict) and any(_is_key_of(key, host) for key in helpers)
    ):
        _log.warning(
            "%s keeps credentials in a helper program, which is not run; for %s set %s instead",
            name,
            host,
            TOKEN_FILE_VARIABLE,
        )
    return None


def _is_key_of(key: str, host: str) -> bool:
    name = key.partition("://")[2] or key
    name = name.partition("/")[0].lower()
    return name == host.lower() or (name in _DOCKER_HUB and host.lower() in _DOCKER_HUB)


def _read_entry(entry: dict[str, object], name: str) -> Credentials | None:
    username, password = entry.get("username"), entry.get("password")
    encoded, identity_token = entry.get("auth"), entry.get("identitytoken")
    if isinstance(encoded, str) and encoded:
        try:
            username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            _log.warning("%s: an auth entry is not user:password in base64: going on without it", name)
    if isinstance(identity_token, str) and identity_token:
        return Credentials(
            username if isinstance(username, str) else "", identity_token, name, is_identity_token=True
        )
    if isinstance(username, str) and isinstance(password, str) and password:
        return Credentials(username, password.rstrip("\0"), name)
    return None
