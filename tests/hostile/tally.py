"""What came of hostile clients and hostile data, counted in groups, for the report."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from tests.reliability.results import Cell, write_suite

CLIENT_GROUPS: Final = 14
DATA_GROUPS: Final = 14

_CLIENTS: Final = (
    "A proxy process, and clients that say anything to it. After each, the next well-formed request is"
    " answered as ever; at the end the log holds no traceback."
)
_DATA: Final = (
    "What a registry, an upstream or a NAR can hold. The proxy serves what is right beside it, and readers"
    " refuse it with one line."
)


class Tally:
    """Collects outcomes; a group counts once all of it was tried."""

    def __init__(self) -> None:
        self._outcomes: dict[str, Counter[str]] = {}
        self.cells: list[Cell] = []

    def add(self, group: str, outcome: str, total: int = 1, *, times: int = 1) -> None:
        """Note one outcome.

        Args:
            group: what was tried.
            outcome: what came of it.
            total: how many outcomes the group has when it is complete.
            times: how often one of them was tried.
        """
        outcomes = self._outcomes.setdefault(group, Counter())
        outcomes[outcome] += 1
        if outcomes.total() == total:
            said = [f"{outcome} ({count})" for outcome, count in outcomes.most_common()]
            self.cells.append(Cell(group, total * times, "; ".join(said) if len(said) > 1 else outcome))


@pytest.fixture(scope="session")
def clients() -> Iterator[Tally]:
    """Results of hostile clients."""
    tally = Tally()
    yield tally
    write_suite(50, "Hostile clients", _CLIENTS, CLIENT_GROUPS, tally.cells)


@pytest.fixture(scope="session")
def data() -> Iterator[Tally]:
    """Results of hostile data."""
    tally = Tally()
    yield tally
    write_suite(60, "Hostile data", _DATA, DATA_GROUPS, tally.cells)
