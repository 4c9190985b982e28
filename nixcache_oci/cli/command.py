"""How to call this program so that it works as printed: its name or path, and the flags that it was given."""

import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from nixcache_oci.cli.cache_view import VARIABLES
from nixcache_oci.cli.main import PROGRAM
from nixcache_oci.maintenance.checks.command import Commands
from nixcache_oci.settings import table
from nixcache_oci.settings.variable import Values, Variable

# The verbs that remedies name, and their settings.
TAKEN: Final[Mapping[str, tuple[Variable[object], ...]]] = {
    "keygen": (),
    "proxy": (*table.PROXY_VARIABLES, *table.REPOSITORY_VARIABLES, table.LOG_LEVEL),
    "publish": (*table.REPOSITORY_VARIABLES, table.SIGNING_KEY_FILE, table.INDEX_DIR),
    "use": (table.LISTEN, table.PORT, *VARIABLES),
    "verify": VARIABLES,
}


def own_program(environment: Mapping[str, str]) -> str:
    """Write how to call this program in the user's shell: by name where that finds it, else by its path."""
    found = shutil.which(PROGRAM, path=environment.get("PATH"))
    own = _own_path()
    if found is not None and (own is None or Path(found).samefile(own)):
        return PROGRAM
    return f"{shlex.quote(sys.executable)} -m nixcache_oci" if own is None else shlex.quote(str(own))


def own_commands(values: Values) -> Commands:
    """Collect what the commands in remedies need to do what this run would."""
    own = _own_path()
    program = own_program(values.environment)
    return Commands(
        program,
        program if own is None else shlex.quote(str(own)),
        {verb: _flags(values, taken, with_environment=False) for verb, taken in TAKEN.items()},
        {verb: _flags(values, taken, with_environment=True) for verb, taken in TAKEN.items()},
    )


def _own_path() -> Path | None:
    """Find the program that runs, or the one beside this Python, where that was told to run a module."""
    started = Path(sys.argv[0])
    candidates = [started] if started.name == PROGRAM else []
    candidates.append(Path(sys.executable).with_name(PROGRAM))
    return next((one.absolute() for one in candidates if one.is_file()), None)


def _flags(values: Values, taken: Iterable[Variable[object]], *, with_environment: bool) -> tuple[str, ...]:
    flags: list[str] = []
    for variable in taken:
        text = values.text(variable, with_environment=with_environment)
        if variable.flag is not None and text is not None:
            flags += [variable.flag, text]
    return tuple(flags)
