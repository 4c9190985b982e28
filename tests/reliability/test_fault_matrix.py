"""Every request with every fault, by everybody who asks: the outcome is the one that the table states."""

from collections.abc import Iterator

import pytest

from tests.reliability.matrix import Cell, Run, Seen, all_cells, find_secrets, read_table, run_cells
from tests.reliability.observed import Outcome
from tests.reliability.results import FAILED, write_suite
from tests.reliability.results import Cell as Result

CELLS = read_table()
_SHOWN = 3_000  # letters
_WHAT = (
    "Each request that a registry gets, with each fault that a double of GHCR can play: once, and then for as"
    " long as it takes until somebody gives up. Each cell has a registry, clients and files of its own;"
    " nothing in it may hang, lose what was served or listed before, give a client a wrong byte, or show a"
    " token. `tests/reliability/fault_matrix.txt` has each cell with the words that have to be said, says"
    " what the outcomes mean, and why a field is empty."
)

# The first test of the module waits for all cells, a minute or two on two busy cores.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run the cells of all selected tests at once: each takes seconds, and nearly all of that is waiting."""
    specs = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    selected = [spec.params["cell"] for spec in specs if spec is not None and "cell" in spec.params]
    done = run_cells(selected or CELLS)
    yield done
    results = []
    leak = "a secret left the process" if find_secrets(done) else ""
    for cell, seen in done.seen.items():
        problem = _compare(cell, seen) or leak
        outcome = (
            f"{FAILED}: {problem}" if problem else f"{seen.once.kind}; while it lasts: {seen.forever.kind}"
        )
        results.append(Result(cell.name, 2, outcome))
    write_suite(10, "Fault matrix", _WHAT, len(CELLS), results)


def test_the_table_is_whole() -> None:
    """No operation, fault or role is left out."""
    assert [(cell.role, cell.operation, cell.fault) for cell in CELLS] == all_cells()


def _compare(cell: Cell, seen: Seen) -> str:
    """Say how a cell differs from the table; empty where it does not."""
    if seen.trouble:
        return seen.trouble
    kind, _, words = cell.forever.partition(": ")
    if seen.once.kind != cell.once:
        return f"once: expected {cell.once!r}, got {seen.once}"
    if seen.forever.kind != kind or words not in seen.forever.said:
        return f"forever: expected {cell.forever!r}, got {seen.forever}"
    return ""


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_cell(cell: Cell, run: Run) -> None:
    """Once, it is made good where it can be; for ever, it ends, and says what it was."""
    problem = _compare(cell, run.seen[cell])
    if problem:  # not by assert: comparing long texts letter by letter takes minutes
        pytest.fail(problem[:_SHOWN], pytrace=False)


def test_no_secret_left_the_process(run: Run) -> None:
    """Logs at debug, bodies and heads of answers, errors' lines, and all that the storage was sent."""
    assert run.outside.secrets
    assert len(run.outside.texts) + len(run.log.lines) > len(run.seen)
    found = find_secrets(run)
    if found:
        pytest.fail(f"{len(found)} texts, such as {found[0][:_SHOWN]}", pytrace=False)


@pytest.mark.parametrize(
    "text",
    [
        "token=ghpSECRET0123",
        "Authorization: Basic b2N0b2NhdDpnaHBTRUNSRVQwMTIz",
        "Authorization: Bearer issued-token_1",
        "http://127.0.0.1:1/ghcr/blobs/x?sp=r&sig=v%2B",
    ],
)
def test_a_secret_would_be_found(text: str) -> None:
    """A search that finds nothing shows nothing, unless it can find."""
    nothing = run_cells([])
    nothing.outside.texts.append("harmless")
    nothing.outside.secrets.add("issued-token_1")
    assert find_secrets(nothing) == []
    nothing.outside.texts.append(text)
    assert find_secrets(nothing) == [text]


def test_a_cell_that_differs_is_told() -> None:
    """So is one in which anything happened that must not."""
    cell = Cell("role", "tags", "500", "recovers", "refuses: 500")
    good = Seen(Outcome("recovers"), Outcome("refuses", "list tags: 500 Internal Server Error"))
    assert _compare(cell, good) == ""
    for bad in (
        Seen(Outcome("refuses"), good.forever),
        Seen(good.once, Outcome("refuses", "list tags: 502")),
        Seen(good.once, Outcome("does without", "500")),
        Seen(good.once, good.forever, "it hangs"),
    ):
        assert _compare(cell, bad)
