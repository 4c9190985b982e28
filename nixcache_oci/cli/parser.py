"""The parser of the command line: says in one line what is wrong, and what was probably meant."""

import argparse
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from nixcache_oci.cli.console import complain
from nixcache_oci.cli.verb import WRONG_USAGE
from nixcache_oci.cli.verbosity import add_verbosity


class Parser(argparse.ArgumentParser):
    """Refuses each flag, verb and choice that it does not know, and names the nearest that it does.

    argparse suggests nothing before Python 3.14, and never a flag. The parsers of verbs and of their actions
    are of this class as well.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  argparse's own
        super().__init__(**options)
        if self.add_help:
            add_verbosity(self)

    def parse_known_args(  # type: ignore[override]  # overloads let a namespace be of any class
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse all there is: nothing is left over for anybody else."""
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
        """Refuse the command line; what was written is repeated, which a script may have from elsewhere."""
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


def _flags_of(words: Iterable[str], *, stops_at_word: bool) -> Iterable[str]:
    """Find the long flags, as argparse does; what follows a verb is for the verb's own parser."""
    for word in words:
        if word == "--" or (stops_at_word and not word.startswith("-")):
            return
        if word.startswith("--") and " " not in word.partition("=")[0]:
            yield word.partition("=")[0]


def _suggest(word: str, known: Iterable[str]) -> str:
    """Ask whether the nearest was meant, where there is one."""
    import difflib  # noqa: PLC0415 -- with what it imports, a twentieth of a start, and only an error needs it

    by_letters = {name.lstrip("-"): name for name in known}
    letters = word.lstrip("-").lower().replace("_", "-")
    begun = [name for name in by_letters if letters and name.startswith(letters)]
    near = difflib.get_close_matches(letters, begun or by_letters, n=1, cutoff=0 if begun else 0.6)
    return f": did you mean {by_letters[near[0]]}?" if near else ""
