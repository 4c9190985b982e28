"""The whole journey of a cache at each registry that people have, as far as its double knows its manners."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.journey.registry_story import Place, run_journey, write_large
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_manners import PERSONAS

# MiB of a large NAR. It is smaller where 200 show nothing more: R2 takes chunks of 100 MB, and Gitea ignores
# ranges, so that a resume reads the blob from its start.
_LARGE: Final = {"r2": 200, "gitea": 200}
_USUAL: Final = 24


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        yield double


@pytest.mark.parametrize("persona", ["ghcr", *PERSONAS])
async def test_all_of_it_holds(ghcr: GhcrDouble, tmp_path: Path, persona: str) -> None:
    """One row a registry; GHCR itself deletes by its API, which has tests of its own."""
    ghcr.deletes = True
    if persona != "ghcr":
        ghcr.behave(PERSONAS[persona])
    image = "" if ghcr.name_parts is not None else "nix-cache"
    place, back = (Place(ghcr.host, repo, image, ghcr.token) for repo in ("octocat/hello", "octocat/back"))
    large = write_large(tmp_path / "large", _LARGE.get(persona, _USUAL))
    await run_journey(place, back, large, tmp_path, ghcr=ghcr)
