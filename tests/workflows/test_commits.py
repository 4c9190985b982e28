"""What is committed by workflows, and what is not: one file, on a branch, beside whoever else pushes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflows.documents import TOP
from tests.workflows.expression import Payload
from tests.workflows.github_story import GithubStory, flake
from tests.workflows.recorder import spy_on
from tests.workflows.runner import Event, Job, Result

pytestmark = pytest.mark.needs("nix", "git")

UPDATE = TOP / "workflows/update"
PUBLIC_KEY = TOP / "workflows/public-key"
MAY_COMMIT = {"contents": "write"}
MAIN = "refs/heads/main"
LOCK = "config/flake.lock"
PACKAGES = 'one = mk "one" "echo ${dep.text} > $out";'


@pytest.fixture
def old_lock(story: GithubStory) -> GithubStory:
    """Give a repository whose flake.lock is behind."""
    story.commit_flake(flake(PACKAGES, story.write_input("old")))
    story.write_input("new")
    return story


def checked_out(story: GithubStory, event: Event | None = None, **permissions: str) -> Job:
    job = story.job(event, permissions or MAY_COMMIT)
    story.check_out(job, MAIN, job.event.ref)
    return job


def commit_key(job: Job, story: GithubStory) -> Result:
    return job.run_action(PUBLIC_KEY, {"public-key": str(story.key.public_key)})


def test_the_commit(old_lock: GithubStory) -> None:
    """It is the bot's, has the given message and one file, and leaves alone what else has changed."""
    job = checked_out(old_lock)
    (job.workspace / "config/flake.nix").write_text((job.workspace / "config/flake.nix").read_text() + "\n")
    (job.workspace / "staged").write_text("")
    old_lock.git("add", "staged", folder=job.workspace)
    ran = job.run_action(UPDATE, {"message": "$(touch pwned) `touch pwned`"}).check()
    head = old_lock.head()
    assert ran.outputs == {"changed": "true", "commit": head}
    assert old_lock.changed_files(head) == {LOCK: "M"}
    assert old_lock.git("log", "-1", "--format=%an <%ae>|%s", head, folder=old_lock.remote).strip() == (
        "github-actions[bot] <41898282+github-actions[bot]@users.noreply.github.com>"
        "|$(touch pwned) `touch pwned`"
    )
    left = old_lock.git("status", "--porcelain", folder=job.workspace).splitlines()
    assert left == [" M config/flake.nix", "A  staged"]
    assert not list(job.folder.rglob("pwned"))


def test_nothing_changed(old_lock: GithubStory) -> None:
    """Then there is no commit, and the outputs say so."""
    checked_out(old_lock).run_action(UPDATE, {}).check()
    head = old_lock.head()
    ran = checked_out(old_lock).run_action(UPDATE, {}).check()
    assert ran.outputs == {"changed": "false", "commit": head}
    assert old_lock.head() == head


def test_somebody_else_was_faster(old_lock: GithubStory) -> None:
    """Both commits are kept, whatever was pushed between checkout and push."""
    job = checked_out(old_lock)
    theirs = old_lock.commit({"README.md": "theirs\n"})
    ran = job.run_action(UPDATE, {}).check()
    assert ran.outputs == {"changed": "true", "commit": old_lock.head()}
    assert old_lock.head(f"{MAIN}^") == theirs
    assert old_lock.changed_files(MAIN) == {LOCK: "M"}


def test_somebody_else_did_the_same(story: GithubStory) -> None:
    """Two jobs with one key: the second finds its change there, and that is no failure."""
    jobs = [checked_out(story), checked_out(story)]
    for job in jobs:
        assert commit_key(job, story).check().outputs["commit"] == story.head()
    assert story.show("public-key.txt") == f"{story.key.public_key}\n"


def test_the_same_file_was_changed_otherwise(old_lock: GithubStory) -> None:
    """Their file is kept, and one line tells; no half-done rebase stays behind."""
    job = checked_out(old_lock)
    theirs = old_lock.commit({LOCK: "theirs\n"})
    ran = job.run_action(UPDATE, {})
    assert ran.outcome == "failure"
    assert "::error::flake.lock was changed on main meanwhile" in ran.log
    assert old_lock.head() == theirs
    assert not (job.workspace / ".git/rebase-merge").exists()


def test_a_branch_that_takes_no_push(old_lock: GithubStory) -> None:
    """After a bounded number of tries, one line tells what is needed, and git's own words stand above."""
    head = old_lock.head()
    ran = checked_out(old_lock, contents="read").run_action(UPDATE, {})
    assert ran.outcome == "failure"
    assert ran.log.count("Permission denied") == 5
    assert "the job needs contents: write" in ran.log
    assert old_lock.head() == head


@pytest.mark.parametrize("ref", ["refs/tags/v1", "refs/pull/7/merge"])
def test_only_a_branch_is_committed_to(story: GithubStory, ref: str) -> None:
    """A tag stays what it is, and a pull request's ref is nobody's to write."""
    story.tag("v1")
    head = story.head()
    job = story.job(Event("push", ref, Payload()), MAY_COMMIT)
    story.check_out(job, MAIN)
    ran = commit_key(job, story).check()
    assert ran.outputs == {"changed": "false", "commit": head}
    assert f"public-key.txt is not committed: {ref} is no branch" in ran.log
    assert story.head() == story.head("refs/tags/v1") == head


def _secret(story: GithubStory) -> str:
    return story.key.render()


@pytest.mark.parametrize("write", [_secret, lambda _: "no key", lambda _: "  "])
def test_only_a_public_key_is_committed(story: GithubStory, write: Callable[[GithubStory], str]) -> None:
    """A secret key that stands there by mistake does not become public."""
    head = story.head()
    job = checked_out(story)
    ran = job.run_action(PUBLIC_KEY, {"public-key": write(story)})
    assert ran.outcome == "failure"
    assert "::error::input public-key: " in ran.log
    assert story.key.render() not in ran.log
    assert story.head() == head


def test_several_keys(story: GithubStory) -> None:
    """As while a key is exchanged for another: each has its line."""
    other = "other-1:" + "A" * 43 + "="
    keys = f"{story.key.public_key} {other}"
    checked_out(story).run_action(PUBLIC_KEY, {"public-key": keys, "file": "keys.txt"}).check()
    assert story.show("keys.txt") == keys.replace(" ", "\n") + "\n"


@pytest.mark.parametrize("present", ["other-1:" + "B" * 43 + "=\n", "not even a key\n"])
def test_a_key_is_replaced_only_when_asked(story: GithubStory, present: str) -> None:
    """Clients trust what the file holds: another key is an attack, or an exchange that somebody meant."""
    head = story.commit({"public-key.txt": present})
    ran = commit_key(checked_out(story), story)
    assert ran.outcome == "failure"
    assert "::error::public-key.txt holds other keys, which clients trust" in ran.log
    assert "set replace: true" in ran.log
    assert story.head() == head
    given = {"public-key": str(story.key.public_key), "replace": "true"}
    checked_out(story).run_action(PUBLIC_KEY, given).check()
    assert story.show("public-key.txt") == f"{story.key.public_key}\n"


def test_a_key_that_is_there_stays_there(story: GithubStory) -> None:
    """Among others as well, and however the file is written: there is nothing to do."""
    head = story.commit({"public-key.txt": f"other-1:{'B' * 43}= {story.key.public_key}"})
    for replace in ("false", "true"):
        given = {"public-key": str(story.key.public_key), "replace": replace}
        ran = checked_out(story).run_action(PUBLIC_KEY, given).check()
        assert ran.outputs == {"changed": "false", "commit": head}
    assert story.head() == head


def test_a_key_is_written_into_a_file_of_its_own(story: GithubStory) -> None:
    """A link in the checkout would lead elsewhere, such as to the settings of git."""
    (story.clone / "public-key.txt").symlink_to(".git/config")
    story.commit({})
    ran = commit_key(checked_out(story), story)
    assert ran.outcome == "failure"
    assert "::error::input file: public-key.txt is no regular file" in ran.log


def plant(job: Job, proof: Path) -> None:
    """Have the checkout name programs wherever git would run some, and lie on PATH."""
    program = job.workspace / "bin/program"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$0 $* $INPUT_TOKEN" >>{proof}\n')
    program.chmod(0o755)
    for name in ("git", "env", "nix", "sed", "od", "tr", "sleep", "dirname"):
        (program.parent / name).symlink_to(program)
    hooks = job.workspace / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "post-commit", "pre-push", "reference-transaction"):
        (hooks / name).symlink_to(program)
    config = job.workspace / ".git/config"
    config.write_text(
        config.read_text()
        + f"""[core]
            hooksPath = {hooks}
            fsmonitor = {program}
            askPass = {program}
            editor = {program}
            pager = {program}
            sshCommand = {program}
        [commit]
            gpgSign = true
        [gpg]
            program = {program}
        [diff]
            external = {program}
        [credential]
            helper = {program}
        [filter "any"]
            clean = {program}
            smudge = {program}
            process = {program}
            required = true
        [merge "any"]
            driver = {program}
        [diff "any"]
            textconv = {program}
            command = {program}
        [push]
            gpgSign = if-asked
            recurseSubmodules = on-demand
        [remote "origin"]
            receivepack = {program}
            uploadpack = {program}
        """
    )
    (job.workspace / ".git/info").mkdir(exist_ok=True)
    (job.workspace / ".git/info/attributes").write_text("* filter=any merge=any diff=any\n")
    job.environment |= {
        # All but bash, which the runner itself looks for there.
        "PATH": f"{program.parent}:bin:.::{job.environment['PATH']}",
        "GIT_EXTERNAL_DIFF": str(program),
        "GIT_SSH_COMMAND": str(program),
        "GIT_ASKPASS": str(program),
        "BASH_ENV": str(program),
        "ENV": str(program),
        "LD_LIBRARY_PATH": f":{program.parent}",
    }


@pytest.mark.parametrize("name", ["update", "public-key"])
def test_nothing_of_the_checkout_runs(old_lock: GithubStory, name: str, tmp_path: Path) -> None:
    """No program on PATH that lies there, no hook, and none that its settings name."""
    proof = tmp_path / "proof"
    old_lock.commit({"config/HEAD": "ref: refs/heads/main\n", "config/config": "[core]\nbare = true\n"})
    job = checked_out(old_lock)
    plant(job, proof)
    if name == "update":
        job.run_action(UPDATE, {"token": "the_token"}).check()
        assert old_lock.changed_files(MAIN) == {LOCK: "M"}
    else:
        commit_key(job, old_lock).check()
        assert old_lock.changed_files(MAIN) == {"public-key.txt": "A"}
    assert not proof.exists(), proof.read_text()


def test_only_a_push_sees_the_token(old_lock: GithubStory) -> None:
    """Inputs are other people's code, and the token is in no environment while Nix looks at them."""
    job = checked_out(old_lock)
    old_lock.git("remote", "set-url", "origin", "https://127.0.0.1:1/o/r", folder=job.workspace)
    job.environment["SOME_PASSWORD"] = "hunter_8b"
    by_nix, by_git = spy_on(job), spy_on(job, "git")
    ran = job.run_action(UPDATE, {"token": "the_token"})
    assert ran.outcome == "failure"
    assert "the_token" not in ran.log
    told = by_nix.read_text()
    assert "call --extra-experimental-features nix-command flakes flake update" in told
    assert "the_token" not in told
    assert "hunter_8b" not in told
    calls = by_git.read_text().split("\ncall ")[1:]
    seeing = [call for call in calls if "the_token" in call]
    assert 0 < len(seeing) < len(calls)
    for call in seeing:
        words = call.split("\nprocess\n")[0]
        assert " push " in words or " fetch " in words
        assert "credential.https://github.com.helper=" in words


def test_a_folder_without_a_flake(story: GithubStory) -> None:
    """It is named."""
    ran = checked_out(story).run_action(UPDATE, {"flake": "nowhere"})
    assert ran.outcome == "failure"
    assert "::error::input flake: there is no nowhere/flake.nix" in ran.log
