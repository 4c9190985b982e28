"""One setting: an environment variable, and the flag of the same name, which overrides it.

A default is text and goes through the same parser as what a user writes, so it cannot be unparsable or of
another type.
"""

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from nixcache_oci.errors import FormatError, UsageError

PREFIX: Final = "NIXCACHE_"

_MAX_SHOWN_CHARACTERS = 200

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Variable(Generic[T_co]):
    """One setting.

    Attributes:
        name: of the environment variable.
        default: as a user would write it; an empty string for none.
        parse: turns a text into the value; see ``parsers``.
        help: one line for people.
        metavar: stands for the value in help.
        default_note: describes a default that is only known at run time, such as a user's folder.
        separator: separates the values of a list; None for a single value.
        empty_is_value: whether an empty text is a value, or the same as unset.
        is_environment_only: whether it has no flag, which anybody on the machine could read.
        is_switch: whether its flag, such as ``--no-merge``, takes no value and sets it to no.
        hides_value: whether errors leave the value out: it may be a secret put there by mistake, or the
            parser itself shows what is wrong with it.
    """

    name: str
    default: str
    parse: Callable[[str], T_co]
    help: str
    metavar: str
    default_note: str = ""
    separator: str | None = None
    empty_is_value: bool = False
    is_environment_only: bool = False
    is_switch: bool = False
    hides_value: bool = False

    @property
    def flag(self) -> str | None:
        """``--index-ttl`` for NIXCACHE_INDEX_TTL; None for a token, which ``ps`` must not show."""
        if self.is_environment_only or not self.name.startswith(PREFIX):
            return None
        name = self.name.removeprefix(PREFIX).lower().replace("_", "-")
        return f"--no-{name}" if self.is_switch else f"--{name}"


@dataclass(frozen=True, slots=True)
class Values:
    """What the user set: the environment and the flags of one command.

    Attributes:
        environment: of the process.
        flags: parsed arguments; each flag's destination is its variable's name.
    """

    environment: Mapping[str, str]
    flags: argparse.Namespace

    def is_given(self, variable: Variable[object]) -> bool:
        """Tell whether the user set it, so that the default does not count."""
        return self._given(variable) is not None

    def text(self, variable: Variable[object], *, with_environment: bool) -> str | None:
        """Return the text that the user set, by flag alone or by the environment as well."""
        values = self if with_environment else Values({}, self.flags)
        given = values._given(variable)  # noqa: SLF001  # its own class
        return None if given is None else given[1]

    def get(self, variable: Variable[T_co]) -> T_co:
        """Read one setting: its flag, else the environment, else the default.

        Raises:
            UsageError: the text cannot be parsed; names the flag or variable, the text and what is expected.
        """
        origin, text = self._given(variable) or (f"default of {variable.name}", variable.default)
        try:
            return variable.parse(text)
        except (FormatError, UsageError) as error:
            value = "" if variable.hides_value else f" {shown(text)}"
            raise UsageError(f"{origin}{value}: {error}") from error

    def merged_environment(self, variables: Iterable[Variable[object]]) -> dict[str, str]:
        """Copy the environment, with these variables set to what their flags say."""
        given = ((variable.name, self._given(variable)) for variable in variables)
        return {**self.environment, **{name: found[1] for name, found in given if found is not None}}

    def _given(self, variable: Variable[object]) -> tuple[str, str] | None:
        """Find what the user set: the flag's or variable's name, and the text."""
        flag_text = self._flag_text(variable)
        for origin, text in (
            (variable.flag or "", flag_text),
            (variable.name, self.environment.get(variable.name)),
        ):
            if text is not None and (variable.empty_is_value or text.strip()):
                return origin, text.strip()
        return None

    def _flag_text(self, variable: Variable[object]) -> str | None:
        given: str | list[str] | None = getattr(self.flags, variable.name, None)
        if isinstance(given, list):
            return (variable.separator or " ").join(given)
        return given


def add_flags(parser: argparse.ArgumentParser, variables: Iterable[Variable[object]]) -> None:
    """Add the flags of these variables to a command; its help also names variables without a flag."""
    group = parser.add_argument_group("settings", "a flag wins over its environment variable")
    without_flag = []
    for variable in variables:
        if variable.flag is None:
            without_flag.append(variable)
            continue
        text = _help(variable).replace("%", "%%")
        if variable.is_switch:
            group.add_argument(variable.flag, dest=variable.name, action="store_const", const="no", help=text)
            continue
        group.add_argument(
            variable.flag,
            dest=variable.name,
            metavar=variable.metavar,
            help=text,
            action="store" if variable.separator is None else "append",
        )
    if without_flag:
        parser.epilog = "From the environment only: " + "; ".join(
            f"{variable.name}: {variable.help}" for variable in without_flag
        )


def unknown_variables(
    environment: Mapping[str, str], variables: Iterable[Variable[object]]
) -> tuple[str, ...]:
    """Describe set variables that have our prefix and are unknown, one sentence each.

    They are no errors, because other tools of this family share the prefix.
    """
    known = [variable.name for variable in variables]
    return tuple(
        _unknown_sentence(name, known)
        for name in sorted(environment)
        if name.startswith(PREFIX) and name not in known
    )


def _unknown_sentence(name: str, known: list[str]) -> str:
    # Compared without the prefix, which would make all of them similar.
    endings = [other.removeprefix(PREFIX) for other in known if other.startswith(PREFIX)]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1, cutoff=0.7)
    if near:
        return f"{name} is not a variable of nixcache-oci and is ignored: did you mean {PREFIX}{near[0]}?"
    return f"{name} is not a variable of nixcache-oci and is ignored"


def _help(variable: Variable[object]) -> str:
    default = variable.default_note or variable.default or "none"
    separator = {None: "", ":": "; repeat the flag, or separate values with a colon"}.get(
        variable.separator, "; repeat the flag, or separate values with spaces"
    )
    return f"{variable.help}{separator} [{variable.name}, default: {default}]"


def shown(text: str) -> str:
    """Quote a value for an error: without passwords in URLs, and cut to a bounded length."""
    text = without_users(text)
    if len(text) > _MAX_SHOWN_CHARACTERS:
        text = text[:_MAX_SHOWN_CHARACTERS] + "..."
    return repr(text)


def without_users(text: str) -> str:
    """Replace the users and passwords of URLs in a value."""
    return " ".join(_without_user(word) for word in text.split(" "))


def _without_user(word: str) -> str:
    before, at, after = word.rpartition("@")
    if not at:
        return word
    scheme, separator, _ = before.partition("://")
    return f"{scheme}://***@{after}" if separator and scheme.isalnum() else f"***@{after}"
