"""Names what the fuzzers share."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.fuzz.targets import TARGETS
from tests.hostile.story import blobs_upstream, proxy
from tests.reliability.results import Cell, write_suite

HTTP_SURFACE = "HTTP surface"

_WHAT = (
    "Mutants of right inputs, and mere bytes. For a parser: a value that survives being written and read"
    " again, or the package's own error, in one line. For the HTTP surface: an answer in HTTP or a closed"
    " connection, and the next request is answered right."
)


@pytest.fixture(scope="session")
def tried() -> Iterator[Counter[str]]:
    """How often each was tried, by name."""
    counts: Counter[str] = Counter()
    yield counts
    cells = [Cell(name.replace("-", " "), times, "held") for name, times in counts.items()]
    write_suite(70, "Fuzzers", _WHAT, len(TARGETS) + 1, cells)


__all__ = ["blobs_upstream", "proxy", "tried"]
