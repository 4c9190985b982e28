"""What is committed by workflows, and what is not: one file, on a branch, beside whoever else pushes."""

from pathlib import Path

import pytest

from tests.workflows.github_story import MAIN, GithubStory
from tests.workflows.machine import Event, Machine, Result

pytestmark = pytest.mark.needs("nix", "git", "act")

LOCK = "config/flake.lock"
OTHER = f"other-1:{'B' * 43}="


@pytest.fixture
def old_lock(story: GithubStory) -> GithubStory:
    """Give a repository whose flake.lock is behind."""
    story.commit_flake(text="old")
    story.write_input("new")
    return story


def commit_key(story: GithubStory, machine: Machine | None = None, **given: str) -> Result:
    inputs = {"public_key": str(story.key.public_key), **given}
    return (machine or story.checked_out()).run_action("public-key", **inputs)


def test_the_commit(old_lock: GithubStory) -> None:
    """It is the bot's, has the given message and one file, and leaves alone what else has changed."""
    machine = old_lock.checked_out()
    with (machine.workspace / "config/flake.nix").open("a") as file:
        file.write("\n")
    (machine.workspace / "staged").write_text("")
    old_lock.git("add", "staged", folder=machine.workspace)
    ran = machine.run_action("update", message="$(touch pwned) `touch pwned`").check()
    assert ran.outputs == {"changed": "true", "commit": old_lock.head()}
    assert old_lock.changed_files() == {LOCK: "M"}
    bot = "github-actions[bot] <41898282+github-actions[bot]@users.noreply.github.com>"
    assert old_lock.describe() == f"{bot}|$(touch pwned) `touch pwned`"
    left = old_lock.git("status", "--porcelain", folder=machine.workspace).splitlines()
    assert left == [" M config/flake.nix", "A  staged"]
    assert not list(machine.folder.rglob("pwned"))


def test_nothing_changed(old_lock: GithubStory) -> None:
    """Then there is no commit, and the outputs say so."""
    old_lock.checked_out().run_action("update").check()
    head = old_lock.head()
    ran = old_lock.checked_out().run_action("update").check()
    assert ran.outputs == {"changed": "false", "commit": head}
    assert old_lock.head() == head


def test_somebody_else_was_faster(old_lock: GithubStory) -> None:
    """Both commits are kept, whatever was pushed between checkout and push."""
    machine = old_lock.checked_out()
    theirs = old_lock.commit({"README.md": "theirs\n"})
    ran = machine.run_action("update").check()
    assert ran.outputs == {"changed": "true", "commit": old_lock.head()}
    assert old_lock.head(f"{MAIN}^") == theirs
    assert old_lock.changed_files() == {LOCK: "M"}


def test_somebody_else_did_the_same(story: GithubStory) -> None:
    """Two jobs with one key: the second finds its change there, and that is no failure."""
    for machine in [story.checked_out(), story.checked_out()]:
        assert commit_key(story, machine).check().outputs["commit"] == story.head()
    assert story.show("public-key.txt") == f"{story.key.public_key}\n"


def test_the_same_file_was_changed_otherwise(old_lock: GithubStory) -> None:
    """Their file is kept, and one line tells; no half-done rebase stays behind."""
    machine = old_lock.checked_out()
    theirs = old_lock.commit({LOCK: "theirs\n"})
    machine.run_action("update").check_failure("::error::flake.lock was changed on main meanwhile")
    assert old_lock.head() == theirs
    assert not (machine.workspace / ".git/rebase-merge").exists()


def test_a_branch_that_takes_no_push(old_lock: GithubStory) -> None:
    """After a bounded number of tries, one line tells what is needed, and git's own words stand above."""
    head = old_lock.head()
    hook = old_lock.remote / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'remote: Permission denied' >&2\nexit 1\n")
    hook.chmod(0o755)
    ran = old_lock.checked_out().run_action("update")
    assert not ran.is_success
    assert ran.log.count("Permission denied") == 5
    assert "the job needs contents: write" in ran.log
    assert old_lock.head() == head


@pytest.mark.parametrize("ref", ["refs/tags/v1", "refs/pull/7/merge"])
def test_only_a_branch_is_committed_to(story: GithubStory, ref: str) -> None:
    """A tag stays what it is, and a pull request's ref is nobody's to write."""
    head = story.head()
    story.git("update-ref", ref, head, folder=story.remote)
    ran = commit_key(story, story.checked_out(Event("push", ref))).check()
    assert ran.outputs == {"changed": "false", "commit": head}
    assert f"public-key.txt is not committed: {ref} is no branch" in ran.log
    assert story.head() == story.head(ref) == head


@pytest.mark.parametrize("given", ["the secret key", "no key", "  "])
def test_only_a_public_key_is_committed(story: GithubStory, given: str) -> None:
    """A secret key that stands there by mistake does not become public."""
    head, secret = story.head(), story.key.render()
    ran = commit_key(story, public_key=secret if given == "the secret key" else given).check_failure(
        "::error::input public-key: "
    )
    assert secret not in ran.log
    assert story.head() == head


def test_several_keys(story: GithubStory) -> None:
    """As while a key is exchanged for another: each has its line."""
    keys = f"{story.key.public_key} {OTHER}"
    commit_key(story, public_key=keys, file="keys.txt").check()
    assert story.show("keys.txt") == keys.replace(" ", "\n") + "\n"


@pytest.mark.parametrize("present", [f"{OTHER}\n", "not even a key\n"])
def test_a_key_is_replaced_only_when_asked(story: GithubStory, present: str) -> None:
    """Clients trust what the file holds: another key is an attack, or an exchange that somebody meant."""
    head = story.commit({"public-key.txt": present})
    ran = commit_key(story).check_failure("::error::public-key.txt holds other keys, which clients trust")
    assert "set replace: true" in ran.log
    assert story.head() == head
    commit_key(story, replace="true").check()
    assert story.show("public-key.txt") == f"{story.key.public_key}\n"


def test_a_key_that_is_there_stays_there(story: GithubStory) -> None:
    """Among others as well, and however the file is written: there is nothing to do."""
    head = story.commit({"public-key.txt": f"{OTHER} {story.key.public_key}"})
    for replace in ("false", "true"):
        assert commit_key(story, replace=replace).check().outputs == {"changed": "false", "commit": head}
    assert story.head() == head


def test_a_key_is_written_into_a_file_of_its_own(story: GithubStory) -> None:
    """A link in the checkout would lead elsewhere, such as to the settings of git."""
    (story.clone / "public-key.txt").symlink_to(".git/config")
    story.commit({})
    commit_key(story).check_failure("::error::input file: public-key.txt is no regular file")


def plant(machine: Machine, proof: Path) -> None:
    """Have the checkout name programs wherever git would run some, and lie on PATH."""
    program = machine.workspace / "bin/program"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$0 $* $INPUT_TOKEN" >>{proof}\n')
    program.chmod(0o755)
    # All but bash, which the runner itself looks for there.
    for name in ("git", "env", "nix", "sed", "od", "tr", "sleep", "dirname"):
        (program.parent / name).symlink_to(program)
    hooks = machine.workspace / "hooks"
    hooks.mkdir()
    for name in ("pre-commit", "commit-msg", "post-commit", "pre-push", "reference-transaction"):
        (hooks / name).symlink_to(program)
    settings = {
        "core": ("fsmonitor", "askPass", "editor", "pager", "sshCommand"),
        "gpg": ("program",),
        "diff": ("external",),
        "credential": ("helper",),
        'filter "any"': ("clean", "smudge", "process"),
        'merge "any"': ("driver",),
        'diff "any"': ("textconv", "command"),
        'remote "origin"': ("receivepack", "uploadpack"),
    }
    lines = [f"[core]\nhooksPath = {hooks}", '[commit]\ngpgSign = true\n[filter "any"]\nrequired = true']
    lines += ["[push]\ngpgSign = if-asked\nrecurseSubmodules = on-demand"]
    lines += [f"[{section}]\n{name} = {program}" for section, names in settings.items() for name in names]
    with (machine.workspace / ".git/config").open("a") as config:
        config.write("\n".join([*lines, ""]))
    (machine.workspace / ".git/info").mkdir(exist_ok=True)
    (machine.workspace / ".git/info/attributes").write_text("* filter=any merge=any diff=any\n")
    machine.environment["PATH"] = f"{program.parent}:bin:.::{machine.environment['PATH']}"
    machine.environment["LD_LIBRARY_PATH"] = f":{program.parent}"
    for name in ("GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_ASKPASS", "BASH_ENV", "ENV"):
        machine.environment[name] = str(program)


@pytest.mark.parametrize("name", ["update", "public-key"])
def test_nothing_of_the_checkout_runs(old_lock: GithubStory, name: str, tmp_path: Path) -> None:
    """No program on PATH that lies there, no hook, and none that its settings name."""
    proof = tmp_path / "proof"
    old_lock.commit({"config/HEAD": "ref: refs/heads/main\n", "config/config": "[core]\nbare = true\n"})
    machine = old_lock.checked_out()
    plant(machine, proof)
    if name == "update":
        machine.run_action("update", token="the_token").check()
        assert old_lock.changed_files() == {LOCK: "M"}
    else:
        commit_key(old_lock, machine).check()
        assert old_lock.changed_files() == {"public-key.txt": "A"}
    assert not proof.exists(), proof.read_text()


def test_only_a_push_sees_the_token(old_lock: GithubStory) -> None:
    """Inputs are other people's code, and the token is in no environment while Nix looks at them."""
    machine = old_lock.checked_out()
    old_lock.git("remote", "set-url", "origin", "https://127.0.0.1:1/o/r", folder=machine.workspace)
    machine.environment["SOME_PASSWORD"] = "hunter_8b"
    by_nix, by_git = machine.spy_on("nix"), machine.spy_on("git")
    ran = machine.run_action("update", token="the_token")
    assert not ran.is_success
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
    story.checked_out().run_action("update", flake="nowhere").check_failure(
        "::error::input flake: there is no nowhere/flake.nix"
    )
