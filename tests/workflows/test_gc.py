"""The gc action: what it hands on to the program. The journey runs the real one."""

from tests.workflows.documents import TOP
from tests.workflows.github_story import GithubStory
from tests.workflows.recorder import Recorder, restrict_path

ACTION = TOP / "workflows/gc"


def test_inputs_become_arguments(story: GithubStory) -> None:
    """Each reaches the program, unharmed whatever is in it; without Nix."""
    job = story.job()
    restrict_path(job, "bash", "dirname")
    recorder = Recorder(job)
    nasty = "$(touch pwned)"
    job.run_action(
        ACTION,
        {
            "dry-run": "true",
            "force": "true",
            "retention-days": nasty,
            "scope-ttl": "2",
            "grace-days": "3",
            "public-keys": "a-1:AA= b-1:AA=",
            "repo": "other/name",
            "registry": "registry.example",
            "image": "image",
            "token": nasty,
        },
    ).check()
    (call,) = recorder.calls()
    assert call.arguments == [
        "gc",
        "--dry-run",
        "--force",
        f"--retention-days={nasty}",
        "--scope-ttl=2",
        "--grace-days=3",
    ]
    assert (
        call.environment.items()
        >= {
            "NIXCACHE_PUBLIC_KEYS": "a-1:AA= b-1:AA=",
            "NIXCACHE_REPO": "other/name",
            "NIXCACHE_REGISTRY": "registry.example",
            "NIXCACHE_IMAGE": "image",
            "NIXCACHE_TOKEN": nasty,
        }.items()
    )
    assert not list(job.folder.rglob("pwned"))


def test_the_committed_key_counts(story: GithubStory) -> None:
    """Where no key is given, that of public-key.txt decides between variants of a path, if it is there."""
    for name, text in (("public-key.txt", "a-1:AA=\n"), ("other.txt", "")):
        job = story.job()
        recorder = Recorder(job)
        (job.workspace / name).write_text(text)
        job.run_action(ACTION, {}).check()
        (call,) = recorder.calls()
        assert call.environment.get("NIXCACHE_PUBLIC_KEYS") == (text.strip() or None)
        assert call.arguments == ["gc", "--retention-days=30", "--scope-ttl=90", "--grace-days=30"]


def test_without_setup(story: GithubStory) -> None:
    """One line tells."""
    job = story.job()
    restrict_path(job, "bash", "dirname")
    ran = job.run_action(ACTION, {})
    assert ran.outcome == "failure"
    assert "::error::nixcache-oci is not on PATH: use the action workflows/setup" in ran.log
