"""The template's workflows in somebody's repository, from the first push to a client that substitutes."""

import shutil
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.clients.nix_story import SYSTEM
from tests.support.journey import settings_of
from tests.support.proxy import ProxyProcess
from tests.workflows.documents import TEMPLATE, TOP
from tests.workflows.github_story import ONE, GithubStory
from tests.workflows.machine import Event

pytestmark = pytest.mark.needs("nix", "git", "act")

PUBLISH = TEMPLATE / ".github/workflows/publish-cache.yml"
UPDATE = TEMPLATE / ".github/workflows/update-and-cache.yml"
GC = TEMPLATE / ".github/workflows/gc-cache.yml"

PACKAGES = f'{ONE} two = mk "two" "echo ${{self.packages.{SYSTEM}.one}} > $out";'


def test_from_a_push_to_a_client(story: GithubStory, key: SecretKey, tmp_path: Path) -> None:
    """Publish, publish again, update, gc: after each, the cache holds what it should, and Nix takes it."""
    ghcr = story.ghcr.server
    story.commit_flake(PACKAGES, "first")

    first = story.run(PUBLISH).check()
    assert "2 paths: 0 upstream, 0 cached, 2 to push" in first.log
    assert f"packages.{SYSTEM}.one" in first.summary.replace("\\_", "_")
    assert story.show("public-key.txt") == f"{key.public_key}\n"
    assert story.changed_files() == {"public-key.txt": "A"}
    assert story.describe().startswith("github-actions[bot] <")

    # Nothing new: nothing is written, and there is nothing to commit.
    blobs, head = set(ghcr.blobs(ghcr.repository)), story.head()
    second = story.run(PUBLISH).check()
    assert "2 paths: 0 upstream, 2 cached, 0 to push" in second.log
    assert set(ghcr.blobs(ghcr.repository)) == blobs
    assert [record.run for record in story.records()] == ["1"]
    assert story.head() == head

    # Later, an input has changed: the commit that the first job pushes is what the second publishes.
    story.write_input("second")
    scheduled = Event("schedule", sha=head)
    rebuilt = story.run(UPDATE, scheduled).check()
    assert story.head("refs/heads/main^") == head
    assert story.changed_files() == {"config/flake.lock": "M"}
    assert "2 paths: 0 upstream, 0 cached, 2 to push" in rebuilt.log

    by_hand = Event("workflow_dispatch", payload={"inputs": {"dry-run": "true"}})
    assert "## gc, a dry run" in story.run(GC, by_hand).check().summary
    assert "manifests deleted" in story.run(GC, scheduled).check().log

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
    shutil.copytree(story.own_actions / "workflows", story.clone / "workflows")
    story.commit_flake(PACKAGES)
    story.run(TOP / ".github/workflows" / PUBLISH.name).check()
    assert story.show("public-key.txt") == f"{story.key.public_key}\n"
    collected = story.run(TOP / ".github/workflows" / GC.name, Event("schedule")).check()
    assert "2 roots or pins" in collected.log
