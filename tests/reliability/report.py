"""Makes docs/reliability.md of the code's bounds and of what the suites wrote; nothing in it is typed.

    python -m tests.reliability.report RESULTS docs/reliability.md

Writes nothing where a suite is missing, was not run whole, or failed.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Final

from tests.reliability.bounds import render_bounds
from tests.reliability.results import FAILED, Cell, Suite
from tests.reliability.time_limits import render_time_limits

REQUIRED: Final = (
    *("Fault matrix", "Progress", "Trust", "Secrets", "Hostile clients", "Hostile data", "Fuzzers"),
)
_PARTS: Final = 3  # of a cell's text that becomes a field of a grid
_HEAD: Final = """# Reliability

What was tried, how often, and what came of it. This page is made by `make reliability` from what the tests
write: change the tests, not the page.
"""


class IncompleteError(Exception):
    """The results are not those of a whole run that held."""


def read_results(folder: Path) -> list[Suite]:
    """Read every suite in the order of its file's name.

    Raises:
        IncompleteError: one is missing, unreadable, was not run whole, or failed.
    """
    suites = []
    for path in sorted(folder.glob("*.json")):
        try:
            suites.append(Suite.read(path))
        except (KeyError, TypeError, ValueError) as error:
            raise IncompleteError(f"{path.name}: not a result: {error!r}") from None
    if missing := [name for name in REQUIRED if name not in {suite.name for suite in suites}]:
        raise IncompleteError(f"no result of {', '.join(missing)}: run all suites first")
    for suite in suites:
        if len(suite.cells) != suite.planned:
            raise IncompleteError(f"{suite.name}: {len(suite.cells)} of {suite.planned} cells were run")
        for cell in suite.cells:
            if cell.outcome.startswith(FAILED):
                raise IncompleteError(f"{suite.name}: {cell.what}: {cell.outcome}")
    return suites


def render(suites: Iterable[Suite]) -> str:
    """Write the page."""
    limits = (render_bounds(), render_time_limits())
    return "\n".join([_HEAD, *limits, *(_render_suite(suite) for suite in suites)])


def _render_suite(suite: Suite) -> str:
    tried = sum(cell.times for cell in suite.cells)
    lines = [
        *(f"## {suite.name}", "", suite.what, "", f"Cells: {len(suite.cells)}. Tried: {tried:,} times.", ""),
    ]
    parts = [cell.what.split(" / ") for cell in suite.cells]
    is_grid = bool(parts) and all(len(each) == _PARTS for each in parts)
    return "\n".join(lines + (_render_grids(suite.cells) if is_grid else _render_list(suite.cells)))


def _render_list(cells: Sequence[Cell]) -> list[str]:
    rows = [f"| {cell.what} | {cell.times:,} | {cell.outcome} |" for cell in cells]
    return ["| what | times | outcome |", "|---|---:|---|", *rows, ""]


def _render_grids(cells: Sequence[Cell]) -> list[str]:
    """Show letters for outcomes, the most frequent first, and one grid for each section."""
    counts = Counter(cell.outcome for cell in cells).most_common()
    letters = {outcome: _letters(number) for number, (outcome, _) in enumerate(counts)}
    lines = ["| | outcome | cells |", "|---|---|---:|"]
    lines += [f"| {letters[outcome]} | {outcome} | {count} |" for outcome, count in counts]
    sections: dict[str, dict[str, dict[str, str]]] = {}
    for cell in cells:
        section, column, row = cell.what.split(" / ")
        sections.setdefault(section, {}).setdefault(row, {})[column] = letters[cell.outcome]
    for section, rows in sections.items():
        columns = list(dict.fromkeys(column for fields in rows.values() for column in fields))
        lines += ["", f"### {section}", "", f"| | {' | '.join(columns)} |", f"|---{'|:-:' * len(columns)}|"]
        lines += [
            f"| {row} | {' | '.join(fields.get(column, '') for column in columns)} |"
            for row, fields in rows.items()
        ]
    return [*lines, ""]


def _letters(number: int) -> str:
    """Name the outcomes a to z, then aa, ab and so on."""
    tens, ones = divmod(number, len(ascii_lowercase))
    return (ascii_lowercase[tens - 1] if tens else "") + ascii_lowercase[ones]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or say why not."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.report", description=__doc__)
    parser.add_argument("results", type=Path, help="folder of the suites' files")
    parser.add_argument("page", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    try:
        page = render(read_results(options.results))
    except IncompleteError as error:
        sys.stderr.write(f"{error}; {options.page} is as it was\n")
        return 1
    options.page.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
