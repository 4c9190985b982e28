import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import find_program

ROOT = Path(__file__).parents[2]


def run_pytest(folder: Path, program: str, ci: str) -> str:
    """Run one test that needs a program, in a pytest of its own; returns what that prints."""
    text = f"import pytest\n@pytest.mark.needs({program!r})\ndef test_it():\n    assert True\n"
    (folder / "test_it.py").write_text(text)
    options = [
        "-p",
        "tests.support.programs",
        "-p",
        "no:cacheprovider",
        "--strict-markers",
        "-rA",
        "-c",
        os.devnull,
    ]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(folder / "test_it.py")],
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    ).stdout


@pytest.mark.parametrize(
    ("program", "ci", "outcome"),
    [
        ("sh", "true", "1 passed"),
        ("no-such-program", "", "1 skipped"),
        ("no-such-program", "true", "1 error"),
    ],
)
def test_needs(tmp_path: Path, program: str, ci: str, outcome: str) -> None:
    """A test whose program is missing is skipped by name, and fails in CI."""
    output = run_pytest(tmp_path, program, ci)
    assert outcome in output
    assert ("not installed: no-such-program" in output) == (program != "sh")


@pytest.mark.needs("nginx")
def test_servers_are_found() -> None:
    """Debian keeps servers outside of a user's PATH."""
    path = find_program("nginx")
    assert path is not None
    assert os.access(path, os.X_OK)
