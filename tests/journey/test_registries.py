"""The whole journey of a cache at each registry that people have, as far as its double knows its manners."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journey.registry_story import Place, run_journey, write_large
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_manners import PERSONAS


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        yield double


@pytest.mark.parametrize("persona", ["ghcr", *PERSONAS])
@pytest.mark.parametrize("large", [24, pytest.param(200, marks=pytest.mark.registries)], ids="{}-MiB".format)
async def test_all_of_it_holds(ghcr: GhcrDouble, tmp_path: Path, persona: str, large: int) -> None:
    """One row a registry; GHCR itself deletes by its API, which has tests of its own.

    Beyond 24 MiB, R2 takes chunks only, and Gitea, which ignores ranges, has more sent again than is skipped.
    """
    ghcr.deletes = True
    if persona != "ghcr":
        ghcr.behave(PERSONAS[persona])
    image = "" if ghcr.name_parts is not None else "nix-cache"
    place, back = (Place(ghcr.host, repo, image, ghcr.token) for repo in ("octocat/hello", "octocat/back"))
    await run_journey(place, back, write_large(tmp_path / "large", large), tmp_path, ghcr=ghcr)
