"""A repository at GitHub, as every test of the workflows has it."""

from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.clients.nix_story import NixStory
from tests.support.registries import Ghcr
from tests.workflows.documents import TEMPLATE, TEMPLATE_WORKFLOWS
from tests.workflows.github_story import GithubStory


@pytest.fixture
def story(ghcr: Ghcr, key: SecretKey, tmp_path: Path) -> GithubStory:
    """Make a repository that has the template's workflows, and nothing else yet."""
    story = GithubStory(tmp_path, ghcr, key, NixStory(tmp_path / "nix", is_chroot=True))
    story.commit({str(path.relative_to(TEMPLATE)): path.read_text() for path in TEMPLATE_WORKFLOWS})
    return story
