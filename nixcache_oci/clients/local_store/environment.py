"""What other processes see of our environment: the programs that are started here, and those that look at us.

Foreign code can read what Nix gets: a fixed-output derivation by ``impureEnvVars``, a file by
``builtins.getEnv``, a hook directly. So only variables that are known to be harmless are passed.

``/proc/<pid>/environ`` shows the original block, whatever the process removes later, and a build without a
sandbox may run as the same user. So before it builds, the program restarts itself: with a block of harmless
variables, and the others in an anonymous file, which is read and closed before anything else runs.
"""

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Final

from nixcache_oci.errors import Error, UsageError

PASS_ENV_VARIABLE: Final = "NIXCACHE_PASS_ENV"  # noqa: S105 -- the name of a variable, no secret

SECRET_VARIABLES: Final = frozenset({"NIX_SIGNING_KEY", "GITHUB_TOKEN", "GH_TOKEN"})
"""This program's own secrets; no setting passes them on."""

OWN_PREFIX: Final = "NIXCACHE_"

_NAMES: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TERM", "TMPDIR", "NO_COLOR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"),
    }
)
# Nix files read switches such as NIXPKGS_ALLOW_UNFREE.
_PREFIXES: Final = ("LC_", "NIX_", "NIXPKGS_ALLOW_", "XDG_")
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})
_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose a program's environment: what is harmless, and what ``NIXCACHE_PASS_ENV`` names."""
    passed = set(environment.get(PASS_ENV_VARIABLE, "").split())
    return {
        name: value
        for name, value in environment.items()
        if is_harmless(name) or (name in passed and may_pass(name))
    }


def is_harmless(name: str) -> bool:
    """Tell whether anybody may read a variable of this name."""
    if name in _NAMES or name.lower() in _PROXIES:
        return True
    return name.startswith(_PREFIXES) and _SECRET_NAME.search(name) is None


def may_pass(name: str) -> bool:
    """Tell whether a user may pass such a variable on: no secret or setting of this program."""
    return name not in SECRET_VARIABLES and not name.startswith(OWN_PREFIX)


def find_refused(names: Iterable[str]) -> str | None:
    """Find the first of these names that may not be passed on."""
    return next((name for name in names if not may_pass(name)), None)


DESCRIPTOR_VARIABLE: Final = "NIXCACHE_SECRETS_FD"
"""Holds the inherited descriptor; its file has NAME=VALUE entries, each ended by a zero byte."""

# Also kept: what the interpreter and the terminal need, and the name of a file.
_INTERPRETER_PREFIXES: Final = ("PYTHON", "LD_LIBRARY_PATH", "DYLD_")
_OTHER_NAMES: Final = frozenset({"COLUMNS", "LINES", "COLORTERM", "FORCE_COLOR", "NETRC"})
_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def hide_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return all variables of this process; afterwards its block holds no secrets.

    It may restart the program instead of returning, once, which takes some 30 ms. Raises UsageError if the
    inherited descriptor cannot be read; Error if the program cannot be restarted.
    """
    handed = environment.get(DESCRIPTOR_VARIABLE)
    if handed is None:
        kept = {name: value for name, value in environment.items() if _stays(name)}
        if len(kept) < len(environment):
            _start_anew(kept, {name: value for name, value in environment.items() if name not in kept})
        found = dict(environment)
    else:
        found = {name: value for name, value in environment.items() if name != DESCRIPTOR_VARIABLE}
        found |= _read(handed)
    _shut_memory()
    return found


def _stays(name: str) -> bool:
    return is_harmless(name) or name in _OTHER_NAMES or name.startswith(_INTERPRETER_PREFIXES)


def _start_anew(kept: dict[str, str], hidden: Mapping[str, str]) -> None:
    content = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in hidden.items())
    try:
        descriptor = _open_anonymous()
        os.set_inheritable(descriptor, True)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        kept[DESCRIPTOR_VARIABLE] = str(descriptor)
        # The same program with the same arguments.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)  # noqa: S606
    except OSError as error:
        raise Error(f"{sys.executable}: cannot be restarted to keep secrets out of reach: {error}") from None


def _open_anonymous() -> int:
    """Open a file without a name: in memory on Linux, elsewhere on disk and already deleted."""
    make = getattr(os, "memfd_create", None)  # Linux only
    if make is not None:
        return int(make("environment"))
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _read(text: str) -> dict[str, str]:
    try:
        with os.fdopen(int(text), "rb") as file:
            content = file.read()
    except (OSError, ValueError, OverflowError):
        raise UsageError(
            f"{DESCRIPTOR_VARIABLE}: {text[:20]!r} is not a readable descriptor; leave it unset"
        ) from None
    pairs = (os.fsdecode(pair).partition("=") for pair in content.split(b"\0") if pair)
    return {name: value for name, _, value in pairs}


def _shut_memory() -> None:
    """Keep the user's other processes out of this one's memory, which holds the key; Linux only.

    No core file is written either. Child programs are not affected. Source: prctl(2), PR_SET_DUMPABLE.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
