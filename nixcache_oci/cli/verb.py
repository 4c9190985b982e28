"""What verbs have in common: their protocol, exit statuses, and the parser with -v and -q, the log level."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from nixcache_oci.cli.console import complain
from nixcache_oci.errors import UsageError

if TYPE_CHECKING:
    from nixcache_oci.settings.values import Values

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2

_LEVELS: Final = ("warning", "info", "debug")
_COUNT: Final = "verbose"
_QUIET: Final = "quiet"


class Verb(Protocol):
    """A module such as ``proxy``."""

    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Describe the verb's arguments."""

    def run(self, values: "Values") -> int:
        """Do it, and return the exit status.

        Args:
            values: the parsed arguments, with ``quiet`` among them, and the environment of this process.

        Raises:
            Error: becomes one line on standard error, and status 1, or 2 for a UsageError.
        """


class Parser(argparse.ArgumentParser):
    """Refuses each flag, verb and choice that it does not know, and suggests the nearest.

    argparse suggests nothing before Python 3.14, and never a flag. The parsers of verbs and of their actions
    are of this class as well.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  argparse's own
        super().__init__(**options, allow_abbrev=False)
        if self.add_help:
            self._add_verbosity()

    def parse_known_args(  # type: ignore[override]  # overloads let a namespace be of any class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse all arguments, and leave none over."""
        # First, for a misspelt flag makes a positional out of its value, and other errors out of that.
        known = self._option_string_actions
        for word in _flags_of(args or (), stops_at_word=self._subparsers is not None):
            if word not in known:
                self.error(f"unknown flag {word}{_suggest(word, known)}")
        found, left = super().parse_known_args(args, namespace)
        if left:
            word = left[0]
            is_flag = word.startswith("-")
            self.error(f"unknown flag {word}{_suggest(word, known)}" if is_flag else f"unexpected {word!r}")
        return found, left

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        complain(f"{self.prog}: error: {message}", f"usage: see {self.prog} --help")
        self.exit(WRONG_USAGE)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        choices = [str(choice) for choice in action.choices or ()]
        if not choices or value in choices:
            return
        what = (
            action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest).lower()
        )
        hint = _suggest(str(value), choices) or f"; there are: {', '.join(choices)}"
        raise argparse.ArgumentError(None, f"unknown {what} {value!r}{hint}")

    def _add_verbosity(self) -> None:
        # By depth, or what a verb's parser found would replace what the program's did.
        depth = self.prog.count(" ")
        help_of_verbose = "also log decisions; -vv: each request as well"
        self.add_argument(
            "-v", "--verbose", action="count", default=0, dest=f"{_COUNT}{depth}", help=help_of_verbose
        )
        help_of_quiet = "print results, warnings and errors only"
        self.add_argument("-q", "--quiet", action="store_true", dest=f"{_QUIET}{depth}", help=help_of_quiet)


def number(least: int, most: int) -> Callable[[str], int]:
    """Make the type of an argument that is a whole number."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"expected a number from {least} to {most}, got {text[:40]!r}")
        return int(text)

    return parse


def settle_verbosity(
    arguments: argparse.Namespace, environment: Mapping[str, str], *, logs_by_itself: bool
) -> None:
    """Turn -v and -q into the setting of the log level, and into ``arguments.quiet``.

    A flag for the level itself wins over both; they win over the environment. GitHub's debug logging is a
    ``-v`` where nothing else is said. The usual level is info if the verb logs by itself, else warning.

    Raises:
        UsageError: both were given.
    """
    from nixcache_oci.settings.variables import LOG_LEVEL  # noqa: PLC0415 -- a start without a verb needs none

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


def _flags_of(words: Iterable[str], *, stops_at_word: bool) -> Iterable[str]:
    """Find the long flags, as argparse does; what follows a verb is for the verb's own parser."""
    for word in words:
        if word == "--" or (stops_at_word and not word.startswith("-")):
            return
        if word.startswith("--") and " " not in word.partition("=")[0]:
            yield word.partition("=")[0]


def _suggest(word: str, known: Iterable[str]) -> str:
    import difflib  # noqa: PLC0415 -- with what it imports, a twentieth of a start, and only an error needs it

    by_letters = {name.lstrip("-"): name for name in known}
    letters = word.lstrip("-").lower().replace("_", "-")
    begun = [name for name in by_letters if letters and name.startswith(letters)]
    near = difflib.get_close_matches(letters, begun or by_letters, n=1, cutoff=0 if begun else 0.6)
    return f": did you mean {by_letters[near[0]]}?" if near else ""
