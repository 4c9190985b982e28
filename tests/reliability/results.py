"""What a suite found, as a file: tests write it where they are asked to, and the report is made of them.

The variable RELIABILITY_RESULTS names the folder. One file a suite, ``<order>-<name>.json``::

    {"name": "Fault matrix", "what": "One paragraph: what is done to what.", "planned": 2,
     "cells": [{"what": "publisher / tags / 503", "times": 1, "outcome": "recovers"},
               {"what": "no byte is wrong", "times": 1000000, "outcome": "held"}]}

``planned`` is how many cells there are to be, so that a run that ended early, or ran a part, is not taken for
the whole. ``times`` is how often the cell's thing was done. Where the ``what`` of all cells has three parts,
with `` / `` between, they become grids: section, column, row. An outcome that begins with ``FAILED`` makes
the report refuse.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

FOLDER_VARIABLE: Final = "RELIABILITY_RESULTS"
FAILED: Final = "FAILED"


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing that was tried.

    Attributes:
        what: was done.
        times: how often.
        outcome: what came of it.
    """

    what: str
    times: int
    outcome: str


@dataclass(frozen=True, slots=True)
class Suite:
    """One suite's result.

    Attributes:
        name: a heading.
        what: a paragraph.
        planned: how many cells there are in a whole run.
        cells: those that were run.
    """

    name: str
    what: str
    planned: int
    cells: tuple[Cell, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file; KeyError, TypeError or ValueError where it is none of these."""
        document = json.loads(path.read_text())
        cells = tuple(
            Cell(str(each["what"]), int(each["times"]), str(each["outcome"])) for each in document["cells"]
        )
        return cls(str(document["name"]), str(document["what"]), int(document["planned"]), cells)


def write_suite(order: int, name: str, what: str, planned: int, cells: Iterable[Cell]) -> None:
    """Write a suite's file where the environment asks for it.

    Args:
        order: of the suites in the report.
        name: a heading; the file's name is made of it.
        what: a paragraph.
        planned: how many cells there are in a whole run.
        cells: those that were run.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / f"{order:02}-{name.lower().replace(' ', '-')}.json"
    path.write_text(json.dumps(asdict(Suite(name, what, planned, tuple(cells))), indent=1) + "\n")
