"""Commands of this program inside of remedies: whoever pastes one gets what was meant."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Commands:
    """Writes them.

    Attributes:
        program: how to call it here, for a shell: its name, or a path where the name would not be found.
        path: likewise, for another user, whose PATH may lack it.
        flags: of this very run, by verb: those that the verb has as well.
        settings: likewise, with what this run got by its environment, which another user lacks.
    """

    program: str
    path: str
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def here(self, verb: str, *words: str) -> str:
        """Write a command for the same user, in the same shell."""
        return _join(self.program, verb, *words, *self.flags.get(verb, ()))

    def as_root(self, verb: str, *words: str) -> str:
        """Write a command for root, whose environment is another."""
        return _join(self.path, verb, *words, *self.settings.get(verb, ()))


def _join(program: str, *words: str) -> str:
    return " ".join((program, *(shlex.quote(word) for word in words)))
