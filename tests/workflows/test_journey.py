"""The template's workflows in somebody's repository, from the first push to a client that substitutes."""

from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.clients.nix_story import SYSTEM
from tests.support.journey import settings_of
from tests.support.proxy import ProxyProcess
from tests.workflows.documents import TEMPLATE, TOP
from tests.workflows.github_story import SETUP, GithubStory, flake
from tests.workflows.runner import Event

pytestmark = pytest.mark.needs("nix", "git")

PUBLISH = TEMPLATE / ".github/workflows/publish-cache.yml"
UPDATE = TEMPLATE / ".github/workflows/update-and-cache.yml"
GC = TEMPLATE / ".github/workflows/gc-cache.yml"

PACKAGES = """
  one = mk "one" "echo ${dep.text} > $out";
  two = mk "two" "echo ${self.packages.x86_64-linux.one} > $out";
"""


def test_from_a_push_to_a_client(story: GithubStory, key: SecretKey, tmp_path: Path) -> None:
    """Publish, publish again, update, gc: after each, the cache holds what it should, and Nix takes it."""
    ghcr = story.ghcr.server
    dependency = story.write_input("first")
    story.commit_flake(flake(PACKAGES, dependency))

    first = story.run(PUBLISH, "publish").check()
    assert "2 paths: 0 upstream, 0 cached, 2 to push" in first.log
    assert f"packages.{SYSTEM}.one" in first.summary.replace("\\_", "_")
    assert first.outputs == {"public-key": str(key.public_key)}
    story.run(PUBLISH, "public-key", needs={"publish": first}).check()
    assert story.show("public-key.txt") == f"{key.public_key}\n"
    assert story.changed_files(story.head()) == {"public-key.txt": "A"}
    assert story.author(story.head()).startswith("github-actions[bot] <")

    # Nothing new: nothing is written, and there is nothing to commit.
    blobs = set(ghcr.blobs(ghcr.repository))
    second = story.run(PUBLISH, "publish").check()
    assert "2 paths: 0 upstream, 2 cached, 0 to push" in second.log
    assert set(ghcr.blobs(ghcr.repository)) == blobs
    assert [record.run for record in story.records()] == ["1"]
    before = story.head()
    story.run(PUBLISH, "public-key", needs={"publish": second}).check()
    assert story.head() == before

    # A week later, an input has changed.
    story.write_input("second")
    weekly = Event("schedule", sha=story.head())
    updated = story.run(UPDATE, "update", event=weekly).check()
    assert updated.outputs == {"commit": story.head()}
    assert story.changed_files(story.head()) == {"config/flake.lock": "M"}
    rebuilt = story.run(UPDATE, "publish", event=weekly, needs={"update": updated}).check()
    assert "2 paths: 0 upstream, 0 cached, 2 to push" in rebuilt.log

    dry = story.run(GC, "gc", event=Event("workflow_dispatch"), inputs={"dry-run": True}).check()
    assert "## gc, a dry run" in dry.summary
    collected = story.run(GC, "gc", event=weekly).check()
    assert "manifests deleted" in collected.log

    records = story.records()
    assert {record.scope for record in records} == {f"main-{SYSTEM}"}
    assert records[-1].roots != records[0].roots
    with ProxyProcess(
        tmp_path / "proxy", **settings_of(story.ghcr, tmp_path), NIXCACHE_PUBLIC_KEYS=str(key.public_key)
    ) as proxy:
        proxy.wait_ready()
        client = story.nix.sandbox.realise(
            [str(path) for _, path in records[-1].roots],
            substituters=[proxy.url],
            trusted_keys=[str(key.public_key)],
        ).check()
    ((_, one),) = [root for root in records[-1].roots if root[0].endswith(".one")]
    assert story.nix.sandbox.physical(str(one), client.store).read_text() == "second\n"


def test_this_projects_own_workflows(story: GithubStory) -> None:
    """They name the actions by where they lie in the checkout."""
    story.commit_tree(TOP / "workflows")
    story.commit_flake(flake(PACKAGES, story.write_input("text")))
    story.players["./workflows/setup"] = story.players[SETUP]
    own = TOP / ".github/workflows"
    published = story.run(own / PUBLISH.name, "publish").check()
    story.run(own / PUBLISH.name, "public-key", needs={"publish": published}).check()
    assert story.show("public-key.txt") == f"{story.key.public_key}\n"
    assert "2 paths pinned or a root" in story.run(own / GC.name, "gc", event=Event("schedule")).check().log
