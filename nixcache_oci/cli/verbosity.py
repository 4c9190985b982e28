"""``-v`` and ``-q``, before the verb or behind it: how much is said beside results, warnings and errors.

Both are ways to write settings that exist: ``-v`` is the next ``NIXCACHE_LOG_LEVEL``, and ``-q`` the least.
"""

import argparse
from collections.abc import Mapping
from typing import Final

from nixcache_oci.errors import UsageError

_LEVELS: Final = ("warning", "info", "debug")
_COUNT: Final = "verbose"
_QUIET: Final = "quiet"


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Describe both flags, for the program, a verb or an action of one."""
    # Each parser has its own place for them: what a verb's parser found would replace what the program's did.
    depth = parser.prog.count(" ")
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=0,
        dest=f"{_COUNT}{depth}",
        help="log what is decided, too; -vv: and each request",
    )
    parser.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        dest=f"{_QUIET}{depth}",
        help="print results, warnings and errors only",
    )


def settle_verbosity(
    arguments: argparse.Namespace, environment: Mapping[str, str], *, logs_by_itself: bool
) -> None:
    """Turn the flags into the setting of the log level, and into ``arguments.quiet``.

    A flag for the level itself wins over both; they win over the environment. GitHub's debug logging is a
    ``-v`` where nothing else is said.

    Args:
        arguments: as parsed.
        environment: of the process.
        logs_by_itself: whether the verb's usual level is info, and not warning.

    Raises:
        UsageError: both were given.
    """
    from nixcache_oci.settings.table import LOG_LEVEL  # noqa: PLC0415 -- a start without a verb needs none

    given = dict(vars(arguments))
    count = sum(value for name, value in given.items() if name.startswith(_COUNT))
    arguments.quiet = any(value for name, value in given.items() if name.startswith(_QUIET))
    if count and arguments.quiet:
        raise UsageError("either -v or -q, not both")
    if not (count or arguments.quiet or environment.get(LOG_LEVEL.name)):
        count = int(environment.get("RUNNER_DEBUG") == "1")
    if (count or arguments.quiet) and given.get(LOG_LEVEL.name) is None:
        level = 0 if arguments.quiet else min(count + logs_by_itself, len(_LEVELS) - 1)
        setattr(arguments, LOG_LEVEL.name, _LEVELS[level])
