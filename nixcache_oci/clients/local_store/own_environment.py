"""The environment block that this process was started with, which others can read.

``/proc/<pid>/environ`` keeps it, whatever the process removes later, and a build without a sandbox may run
as the same user. So what is about to build starts itself anew: with a block of harmless variables, and all
others in an anonymous file, which is read and closed before anything else runs.
"""

import ctypes
import os
import sys
import tempfile
from collections.abc import Mapping
from typing import Final

from nixcache_oci.clients.local_store.child_environment import is_harmless
from nixcache_oci.errors import Error, UsageError

DESCRIPTOR_VARIABLE: Final = "NIXCACHE_SECRETS_FD"
"""Names the inherited descriptor; its file holds NAME=VALUE, each ended by a zero byte."""

# Beside the harmless ones: what the interpreter itself needs, and how a terminal is drawn on.
_INTERPRETER_PREFIXES: Final = ("PYTHON", "LD_LIBRARY_PATH", "DYLD_")
_TERMINAL_NAMES: Final = frozenset({"COLUMNS", "LINES", "COLORTERM", "FORCE_COLOR"})
_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def hide_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Give all variables of this process; afterwards its block holds none that is a secret.

    It may not return, but start the program anew, which costs some 30 ms and happens once.

    Args:
        environment: of this process, as it was started.

    Raises:
        UsageError: what it was handed cannot be read.
        Error: it cannot be started anew.
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
    return is_harmless(name) or name in _TERMINAL_NAMES or name.startswith(_INTERPRETER_PREFIXES)


def _start_anew(kept: dict[str, str], hidden: Mapping[str, str]) -> None:
    content = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in hidden.items())
    try:
        descriptor = _open_anonymous()
        os.set_inheritable(descriptor, True)
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        kept[DESCRIPTOR_VARIABLE] = str(descriptor)
        # The same program with the same arguments; nothing of it comes from elsewhere.
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)  # noqa: S606
    except OSError as error:
        raise Error(f"{sys.executable}: cannot be restarted to keep secrets out of reach: {error}") from None


def _open_anonymous() -> int:
    """Open a file that has no name: in memory on Linux, elsewhere on the disk and already deleted."""
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
    """Keep other processes of the same user out of this one's memory, where the key still is; Linux only.

    No core file is written either. A program that is started gets a memory of its own, without this.
    Source: prctl(2), PR_SET_DUMPABLE.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
