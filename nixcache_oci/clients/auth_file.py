"""Logins that docker and podman keep, in files or with credential helpers: what they have for one repository.

The most specific entry wins: ``quay.io/org/app`` before ``quay.io/org`` before ``quay.io``. For one name, a
credential helper wins over the file's own entry, which docker then leaves empty; ``credsStore`` comes last.

A helper gets logins from a system's key ring or a cloud's own login: ``docker-credential-NAME get`` reads a
server on standard input, and answers with a JSON object. Helpers are found in PATH only, by a plain name, and
see no secret of ours.

Sources: docker's manual, "docker login" and "Credential helpers"; containers-auth.json(5);
docker-credential-helpers, README, "Development".
"""

import asyncio
import base64
import binascii
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.http.errors import clean_line
from nixcache_oci.clients.local_store.program import run_program
from nixcache_oci.errors import Error
from nixcache_oci.oci.document import read_json

_DOCKER_HUB: Final = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
_DOCKER_HUB_SERVER: Final = "https://index.docker.io/v1/"  # its name towards helpers

_log = logging.getLogger(__name__)
_HELPER_SECONDS: Final = 30  # some ask a cloud service, none asks a person
_MOST_HELPER_BYTES: Final = 64 * 1024  # of its answer
_MOST_HELPER_LINES: Final = 20  # of its standard error
_HELPER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NOT_FOUND: Final = "credentials not found"  # a helper without credentials says so; not an error
_IDENTITY_TOKEN: Final = "<token>"  # noqa: S105  the user name that marks one
# What helpers need to find their files and programs, and to reach a key ring or a cloud.
_PASSED: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "TERM"),
        *("DISPLAY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS", "GNUPGHOME", "GPG_TTY"),
        *("DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "PASSWORD_STORE_DIR", "GOOGLE_APPLICATION_CREDENTIALS"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "NIX_SSL_CERT_FILE"),
        *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    }
)
_PASSED_FAMILIES: Final = ("LC_", "XDG_", "AWS_", "AZURE_", "CLOUDSDK_")


@dataclass(frozen=True, slots=True)
class Helper:
    """A credential helper, the program ``docker-credential-NAME``."""

    name: str  # as the file has it; not checked
    server: str  # to ask it about


def find_auth_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """List the files that may hold logins; the first that knows the registry wins.

    Files that a variable names come first, then podman's for this session and for the user, then docker's.
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
    """Find what a file's text has for a repository, in order of precedence; a malformed one is warned about.

    Args:
        text: of the file.
        name: of the file, for people.
        host: ``host[:port]`` of the registry.
        repository: its name within the registry.
    """
    document = read_json(text)
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
    """Yield the repository's name, then each shorter prefix, down to the registry's host."""
    place = f"{'docker.io' if host in _DOCKER_HUB else host}/{repository}"
    while "/" in place:
        yield place
        place = place.rpartition("/")[0]
    yield place


def _by_place(section: object) -> dict[str, list[tuple[str, object]]]:
    """Group entries by the place that their key names."""
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
    # Docker's own keys are URLs, of which only the host counts.
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


async def ask_helper(helper: Helper, environment: Mapping[str, str]) -> Credentials | None:
    """Ask a helper; None if it has nothing, or, with a warning, if it failed."""
    if not _HELPER_NAME.fullmatch(helper.name):
        _log.warning("%r cannot be the name of a credential helper: it is not run", helper.name[:80])
        return None
    program = f"docker-credential-{helper.name}"
    if shutil.which(program, path=environment.get("PATH")) is None:
        _log.warning(
            "%s is not in PATH, but has the login for %s: continuing without it", program, helper.server
        )
        return None
    said: list[str] = []

    def show(line: str) -> None:
        if line.strip() and len(said) < _MOST_HELPER_LINES:
            said.append(line)
            _log.warning("%s: %s", program, clean_line(line))

    try:
        async with asyncio.timeout(_HELPER_SECONDS):
            ended = await run_program(
                program,
                ["get"],
                environment,
                show,
                choose=_choose_environment,
                given=f"{helper.server}\n".encode(),
                most_bytes=_MOST_HELPER_BYTES,
            )
    except TimeoutError:
        _log.warning("%s did not answer within %d s: continuing without it", program, _HELPER_SECONDS)
        return None
    except (Error, OSError) as error:
        _log.warning("%s: %s: continuing without it", program, error)
        return None
    if ended.status:
        # By the protocol, errors come on standard output.
        reason = clean_line(ended.stdout.decode(errors="replace")) or f"it ended with status {ended.status}"
        if _NOT_FOUND not in reason.lower():
            _log.warning("%s: %s: continuing without it", program, reason)
        return None
    found = _read_answer(ended.stdout, program)
    if found is None:
        _log.warning("%s answered with something other than a login: continuing without it", program)
    return found


def _choose_environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name in _PASSED or name.startswith(_PASSED_FAMILIES)
    }


def _read_answer(answer: bytes, program: str) -> Credentials | None:
    """Read a helper's answer, of which nothing may get into a message; None if it is no login."""
    match read_json(answer):
        case {"Username": str(username), "Secret": str(secret)} if secret:
            is_identity_token = username == _IDENTITY_TOKEN
            return Credentials("" if is_identity_token else username, secret, program, is_identity_token)
    return None
