"""README's table of settings and the one in the code are the same."""

import re
from collections.abc import Iterator
from pathlib import Path

from nixcache_oci.settings.variables import ALL_VARIABLES

_README = Path(__file__).parent.parent / "README.md"
_QUOTED = re.compile(r"`([^`]+)`")
_NAME = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")


def _rows() -> Iterator[tuple[list[str], str]]:
    """Find the rows that name variables in backticks: their names, and the text of the second cell."""
    for line in _README.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) > 1:
            names = [quoted for quoted in _QUOTED.findall(cells[0]) if _NAME.fullmatch(quoted)]
            if names:
                yield names, cells[1]


def test_readme_names_every_variable_once() -> None:
    """A setting that README does not name does not exist for its readers, and the other way round."""
    named = [name for names, _ in _rows() for name in names]
    assert sorted(named) == sorted(variable.name for variable in ALL_VARIABLES)


def test_readme_tells_the_defaults() -> None:
    """Each default that is a value stands in backticks in the second cell; a variable without has none."""
    defaults = {variable.name: variable.default for variable in ALL_VARIABLES}
    notes = {variable.name: variable.default_note for variable in ALL_VARIABLES}
    for names, cell in _rows():
        if not any(notes.get(name) for name in names):
            expected = [defaults[name] for name in names if defaults[name]]
            assert _QUOTED.findall(cell) == expected, names
