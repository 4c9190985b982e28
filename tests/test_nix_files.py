"""The Nix files of the project are Nix."""

import subprocess
from pathlib import Path

import pytest

from tests.support.programs import require_program

TOP = Path(__file__).parents[1]


@pytest.mark.needs("nix-instantiate")
@pytest.mark.parametrize("name", ["flake.nix", "nixos-module.nix"])
def test_it_parses(name: str) -> None:
    """A file that Nix cannot parse breaks every flake that names this one as an input."""
    command = [require_program("nix-instantiate"), "--parse", str(TOP / name)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
