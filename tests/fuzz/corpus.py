"""The corpus: a folder for each target, and in it one file for each seed.

A file whose name begins with ``failure-`` broke the rule once. It is tried first and always, and is a seed.
What ``refused-`` files hold must not be accepted.
"""

from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent / "corpus"


def files(target: str) -> list[Path]:
    """List a target's seeds, past failures first."""
    found = sorted((_FOLDER / target).iterdir())
    return sorted(found, key=lambda path: not path.name.startswith("failure-"))


def seeds(target: str) -> list[bytes]:
    """Read a target's seeds."""
    return [path.read_bytes() for path in files(target)]
