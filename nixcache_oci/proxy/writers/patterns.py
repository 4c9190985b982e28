"""Patterns of names: ``*`` stands for any characters, but for those that separate the name's parts.

A writer may choose a part of its own name, such as a branch; it must not be able to end that part and add
others.
"""

import re
from dataclasses import dataclass, field
from typing import Final, Self

from nixcache_oci.errors import FormatError

SUBJECT_SEPARATORS: Final = ",+"
"""Of a certificate's subject; within a part they are escaped."""

CLAIM_SEPARATORS: Final = ":@"
"""Of GitHub's claims ``sub`` and ``job_workflow_ref``."""

_MOST_CHARACTERS: Final = 1000


@dataclass(frozen=True, slots=True)
class Pattern:
    """One of them."""

    text: str
    _regex: re.Pattern[str] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, separators: str) -> Self:
        """Read a pattern; FormatError if it is empty or too long."""
        if not text or len(text) > _MOST_CHARACTERS:
            raise FormatError(f"expected a name or pattern of 1 to {_MOST_CHARACTERS} characters")
        first, *rest = map(re.escape, re.split(r"\*+", text))
        if not rest:
            return cls(text, re.compile(first))
        star = f"[^{re.escape(separators)}]*"
        # Each piece is taken where it comes first, for good: a name cannot make the search slow.
        middle = "".join(f"(?>{star}?{piece})" for piece in rest[:-1])
        return cls(text, re.compile(first + middle + star + rest[-1]))

    @property
    def is_any(self) -> bool:
        """Whether it says nothing."""
        return not self.text.strip("*")

    def matches(self, name: str) -> bool:
        """Check a whole name."""
        return len(name) <= _MOST_CHARACTERS and self._regex.fullmatch(name) is not None
