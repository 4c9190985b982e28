"""The page is made of whole runs that held, and of nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.report import REQUIRED, main
from tests.reliability.results import FAILED, FOLDER_VARIABLE, Cell, write_suite

CELLS = (
    Cell("publisher / tags / 500", 2, "recovers"),
    Cell("publisher / tags / 403", 2, "refuses"),
    Cell("publisher / token / 500", 2, "recovers"),
    Cell("proxy / tags / 500", 2, "recovers"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of a whole run."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "results"))
    for order, name in enumerate(REQUIRED):
        write_suite(order, name, f"What {name} does.", 1, [Cell("one thing", 1200, "held")])
    return tmp_path / "results"


def make_page(folder: Path) -> str:
    page = folder / "page.md"
    return page.read_text() if main([str(folder), str(page)]) == 0 else ""


def test_every_suite_has_a_section(folder: Path) -> None:
    """Others add theirs by a file of their own; how often something was done is counted."""
    write_suite(90, "Soak", "Ten minutes.", 1, [Cell("requests", 4000, "all answered")])
    page = make_page(folder)
    for name in (*REQUIRED, "Soak"):
        assert f"## {name}\n" in page
    assert "| one thing | 1,200 | held |" in page
    assert "Cells: 1. Tried: 4,000 times." in page


def test_cells_of_three_parts_become_grids(folder: Path) -> None:
    """The most frequent outcome is a; what was not tried is empty."""
    write_suite(0, "Fault matrix", "Faults.", len(CELLS), CELLS)
    page = make_page(folder)
    assert "| a | recovers | 3 |" in page
    assert "### publisher\n\n| | tags | token |\n|---|:-:|:-:|\n| 500 | a | a |\n| 403 | b |  |" in page
    assert "### proxy\n\n| | tags |\n|---|:-:|\n| 500 | a |" in page


def test_without_being_asked_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary run of the tests leaves no files."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    write_suite(0, "Fault matrix", "Faults.", len(CELLS), CELLS)
    assert list(tmp_path.iterdir()) == []


def lose(folder: Path) -> None:
    next(folder.glob("*.json")).unlink()


def cut(_folder: Path) -> None:
    write_suite(0, REQUIRED[0], "Faults.", len(CELLS) + 1, CELLS)


def fail(_folder: Path) -> None:
    write_suite(0, REQUIRED[0], "Faults.", 1, [Cell("one thing", 1, f"{FAILED}: it hangs")])


def spoil(folder: Path) -> None:
    (folder / "99-other.json").write_text(json.dumps({"name": "other"}))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(lose, "no result of"), (cut, "4 of 5 cells"), (fail, "it hangs"), (spoil, "not a result")],
)
def test_an_incomplete_run_makes_no_page(
    folder: Path, harm: Callable[[Path], None], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that says too much is worse than an old one."""
    harm(folder)
    assert make_page(folder) == ""
    assert reason in capsys.readouterr().err
