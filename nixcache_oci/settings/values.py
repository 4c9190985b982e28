"""One setting: an environment variable, and the flag of the same name, which overrides it.

A default is text, and is parsed like what a user writes.
"""

import argparse
import difflib
from collections.abc import Callable, Iterable, Mapping, MutableMapping
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
        parse: one of ``parsers``.
        metavar: stands for the value in help.
        default: as a user would write it; an empty string for none.
        default_note: describes a default that is only known at run time, such as a user's folder.
        separator: of the values of a list; None for a single value.
        empty_is_value: whether an empty text is a value, or the same as unset.
        is_environment_only: whether it has no flag, which anybody on the machine could read.
        is_switch: whether its flag, such as ``--no-merge``, takes no value and sets it to no.
        hides_value: whether errors leave the value out: it may be a secret put there by mistake, or the
            parser itself shows what is wrong with it.
    """

    name: str
    parse: Callable[[str], T_co]
    metavar: str
    help: str
    default: str = ""
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
    """The environment of the process, which a verb may change, and the parsed arguments of a command.

    The destination of each setting's flag is its variable's name.
    """

    environment: MutableMapping[str, str]
    flags: argparse.Namespace

    def is_given(self, variable: Variable[object]) -> bool:
        """Tell whether the user set it."""
        return self._given(variable) is not None

    def text(self, variable: Variable[object], *, with_environment: bool) -> str | None:
        """Return the text that the user set, by a flag, or by the environment where that counts."""
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
        flag: str | list[str] | None = getattr(self.flags, variable.name, None)
        if isinstance(flag, list):
            flag = (variable.separator or " ").join(flag)
        named = ((variable.flag or "", flag), (variable.name, self.environment.get(variable.name)))
        for origin, text in named:
            if text is not None and (variable.empty_is_value or text.strip()):
                return origin, text.strip()
        return None


def add_flags(parser: argparse.ArgumentParser, variables: Iterable[Variable[object]]) -> None:
    """Add the flags of these variables to a command; its help also names variables without a flag."""
    group = parser.add_argument_group("settings", "a flag wins over its environment variable")
    without_flag = []
    for variable in variables:
        if variable.flag is None:
            without_flag.append(f"{variable.name}: {variable.help}")
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
        parser.epilog = "From the environment only: " + "; ".join(without_flag)


def unknown_variables(
    environment: Mapping[str, str], variables: Iterable[Variable[object]]
) -> tuple[str, ...]:
    """Describe each set variable that has our prefix and is unknown.

    These are no errors: other tools of this family share the prefix.
    """
    # Compared without the prefix, which would make all of them similar.
    names = (variable.name for variable in variables)
    known = [name.removeprefix(PREFIX) for name in names if name.startswith(PREFIX)]
    given = (name.removeprefix(PREFIX) for name in sorted(environment) if name.startswith(PREFIX))
    sentences = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            hint = f": did you mean {PREFIX}{near[0]}?" if near else ""
            sentences.append(f"{PREFIX}{name} is not a variable of nixcache-oci and is ignored{hint}")
    return tuple(sentences)


def _help(variable: Variable[object]) -> str:
    default = variable.default_note or variable.default or "none"
    by = {":": "colons", ";": "semicolons"}.get(variable.separator or "", "spaces")
    repeated = "" if variable.separator is None else f"; repeat the flag, or separate values with {by}"
    return f"{variable.help}{repeated} [{variable.name}, default: {default}]"


def shown(text: str) -> str:
    """Quote a value for an error: without passwords in URLs, and cut to a bounded length."""
    text = without_users(text)
    return repr(text if len(text) <= _MAX_SHOWN_CHARACTERS else f"{text[:_MAX_SHOWN_CHARACTERS]}...")


def without_users(text: str) -> str:
    """Replace the users and passwords of URLs in a value."""
    return " ".join(_without_user(word) for word in text.split(" "))


def _without_user(word: str) -> str:
    before, at, after = word.rpartition("@")
    if not at:
        return word
    scheme, separator, _ = before.partition("://")
    return f"{scheme}://***@{after}" if separator and scheme.isalnum() else f"***@{after}"
