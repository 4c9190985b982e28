"""Docker's credential helpers: programs that keep logins, in a system's key ring or from a cloud's own login.

``docker-credential-NAME get`` reads a server on standard input, and answers with a JSON object. They are
found in PATH only, by a name that can be nothing but a name, and see no secret of ours.

Source: docker-credential-helpers, README, "Development"; docker's manual, "Credential helpers".
"""

import asyncio
import json
import logging
import re
import shutil
from collections.abc import Mapping
from typing import Final

from nixcache_oci.clients.auth_file import Helper
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.local_store.program import run_program
from nixcache_oci.errors import Error

_SECONDS: Final = 30  # some ask a cloud's service, none asks a person
_MOST_BYTES: Final = 64 * 1024  # of its answer
_MOST_LINES: Final = 20  # of what it complains about
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_NOT_FOUND: Final = "credentials not found"  # what a helper says that has none; not an error
_IDENTITY_TOKEN: Final = "<token>"  # noqa: S105  the user name that marks one
# What helpers need: to find their own files and programs, to reach a key ring, and to reach a cloud.
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

_log = logging.getLogger(__name__)


async def ask_helper(helper: Helper, environment: Mapping[str, str]) -> Credentials | None:
    """Ask a helper; None where it has nothing, or could not be asked: then there is a warning.

    Args:
        helper: whom, and for what.
        environment: the process's; the helper gets a part of it.
    """
    if not _NAME.fullmatch(helper.name):
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
        if line.strip() and len(said) < _MOST_LINES:
            said.append(line)
            _log.warning("%s: %s", program, _clean(line))

    try:
        async with asyncio.timeout(_SECONDS):
            ended = await run_program(
                program,
                ["get"],
                environment,
                show,
                choose=_choose_environment,
                given=f"{helper.server}\n".encode(),
                most_bytes=_MOST_BYTES,
            )
    except TimeoutError:
        _log.warning("%s did not answer within %d s: continuing without it", program, _SECONDS)
        return None
    except (Error, OSError) as error:
        _log.warning("%s: %s: continuing without it", program, error)
        return None
    if ended.status:
        # By this protocol, errors are told on standard output.
        reason = _clean(ended.stdout.decode(errors="replace")) or f"it ended with status {ended.status}"
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
    """Read a helper's answer; nothing of it may get into a message."""
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    match document:
        case {"Username": str(username), "Secret": str(secret)} if secret:
            is_identity_token = username == _IDENTITY_TOKEN
            return Credentials("" if is_identity_token else username, secret, program, is_identity_token)
    return None


def _clean(text: str) -> str:
    line = " ".join(text.split())
    return "".join(letter for letter in line if letter.isprintable())[:200]
