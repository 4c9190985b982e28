"""Logins that docker and podman keep: where their files are, and what they say of one repository.

The entry that names most of the repository counts: ``quay.io/org/app`` before ``quay.io/org`` before
``quay.io``. Of one place, a credential helper counts before what is in the file, which docker leaves there
empty; ``credsStore`` comes last.

Sources: docker's manual, "docker login"; containers-auth.json(5).
"""

import base64
import binascii
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.clients.credentials import Credentials

_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_DOCKER_HUB_SERVER: Final = "https://index.docker.io/v1/"  # what docker calls it towards helpers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Helper:
    """A program that keeps credentials: ``docker-credential-NAME``.

    Attributes:
        name: as the file has it; not checked.
        server: what to ask it for.
    """

    name: str
    server: str


def find_auth_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Tell which files may hold logins; the first that knows the registry counts.

    Those that a variable names come first, then podman's, of this session and of the user, then docker's.
    """
    found = []
    home = environment.get("HOME")
    if named := environment.get("REGISTRY_AUTH_FILE"):
        found.append(Path(named))
    if folder := environment.get("DOCKER_CONFIG"):
        found.append(Path(folder) / "config.json")
    configured = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else None)
    found.extend(
        Path(folder) / "containers" / "auth.json"
        for folder in (environment.get("XDG_RUNTIME_DIR"), configured)
        if folder
    )
    if home:
        found.append(Path(home) / ".docker" / "config.json")
    return tuple(dict.fromkeys(found))


def search_auth_file(text: str, name: str, host: str, repository: str) -> list[Credentials | Helper]:
    """Find what a file has for a repository, what counts most first.

    Args:
        text: the file's content; a malformed one costs a warning.
        name: what to call it.
        host: ``host[:port]`` of the registry.
        repository: its name within the registry.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        _log.warning("%s is not JSON: continuing without it", name)
        return []
    if not isinstance(document, dict):
        _log.warning("%s is not a JSON object: continuing without it", name)
        return []
    auths, helpers = _by_place(document.get("auths")), _by_place(document.get("credHelpers"))
    found: list[Credentials | Helper] = []
    for place in _places(host.lower(), repository):
        for key, helper in helpers.get(place, ()):
            if isinstance(helper, str) and helper:
                found.append(Helper(helper, key))
        for _, entry in auths.get(place, ()):
            if isinstance(entry, dict) and (credentials := _read_entry(entry, name)):
                found.append(credentials)
    store = document.get("credsStore")
    if isinstance(store, str) and store:
        found.append(Helper(store, _DOCKER_HUB_SERVER if host.lower() in _DOCKER_HUB else host))
    return found


def _places(host: str, repository: str) -> Iterator[str]:
    """Name the repository, and all that is above it up to the registry."""
    place = f"{'docker.io' if host in _DOCKER_HUB else host}/{repository}"
    while "/" in place:
        yield place
        place = place.rpartition("/")[0]
    yield place


def _by_place(section: object) -> dict[str, list[tuple[str, object]]]:
    """Sort entries by the place that their key names."""
    places: dict[str, list[tuple[str, object]]] = {}
    for key, entry in section.items() if isinstance(section, dict) else ():
        places.setdefault(_place(key), []).append((key, entry))
    return places


def _place(key: str) -> str:
    _, scheme, rest = key.partition("://")
    host, _, path = (rest if scheme else key).strip("/").partition("/")
    host = host.lower()
    if host in _DOCKER_HUB:
        host = "docker.io"
        path = "" if path in {"v1", "v2"} else path
    # Docker's own keys are addresses, of which only the host counts.
    return host if scheme or not path else f"{host}/{path}"


def _read_entry(entry: dict[str, object], name: str) -> Credentials | None:
    username, password = entry.get("username"), entry.get("password")
    encoded, identity_token = entry.get("auth"), entry.get("identitytoken")
    if isinstance(encoded, str) and encoded:
        try:
            username, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            _log.warning("%s: an auth entry is not user:password in base64: continuing without it", name)
    if isinstance(identity_token, str) and identity_token:
        return Credentials(
            username if isinstance(username, str) else "", identity_token, name, is_identity_token=True
        )
    if isinstance(username, str) and isinstance(password, str) and password:
        return Credentials(username, password.rstrip("\0"), name)
    return None
