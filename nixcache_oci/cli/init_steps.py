"""What to do after ``init``, as commands that work as printed, one after the other."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.cli.main import PROGRAM
from nixcache_oci.cli.starter import (
    BRANCH,
    FLAKE_FOLDER,
    IGNORED,
    PLACEHOLDER,
    PLACEHOLDER_REF,
    WORKFLOWS,
    Choices,
)
from nixcache_oci.clients.local_store.git import GITHUB, Checkout, GithubRepository

KEY_FILES: Final = "*.sec"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FEATURES: Final = "--extra-experimental-features 'nix-command flakes'"
_IMAGE: Final = "nix-cache"


@dataclass(frozen=True, slots=True)
class Situation:
    """The repository that the files were written into, and how to call this program in a shell."""

    folder: Path
    choices: Choices
    checkout: Checkout | None
    github: GithubRepository | None
    ignores_keys: bool
    program: str

    @property
    def repo(self) -> str:
        """``owner/name``, or a placeholder."""
        return "OWNER/NAME" if self.github is None else str(self.github)

    @property
    def key(self) -> str:
        """Name of the first key."""
        name = "NAME" if self.github is None else self.github.name.lstrip(".-")
        return f"{name or 'cache'}-1"

    @property
    def web(self) -> str:
        """Address of GitHub."""
        return f"https://{GITHUB if self.github is None else self.github.host}"

    @property
    def page(self) -> str:
        """Address of the repository."""
        return f"{self.web}/{self.repo}"

    @property
    def branch(self) -> str:
        """The branch that is checked out."""
        current = BRANCH if self.checkout is None else self.checkout.current
        return current or self.choices.branch


@dataclass(frozen=True, slots=True)
class _Step:
    """What a step is for, and its commands for a shell."""

    text: str
    commands: tuple[str, ...] = ()


def say_next_steps(situation: Situation) -> str:
    """Write the numbered steps; the line of a command begins with four spaces."""
    lines = ["Next:"]
    for number, step in enumerate(_steps(situation), 1):
        lines.append(f"{number}. {step.text}{':' if step.commands else ''}")
        lines += [f"    {command}" for command in step.commands]
    return "\n".join(lines)


def _steps(situation: Situation) -> Iterator[_Step]:
    if situation.folder.resolve() != Path.cwd():
        yield _Step("Go there", (f"cd {shlex.quote(str(situation.folder))}",))
    is_new = situation.checkout is None and not (situation.folder / ".git").exists()
    if is_new:
        yield _Step("Make it a git repository", (f"git init -b {BRANCH}",))
    # Where git refuses to look, as into another user's repository, nothing is known of remotes.
    if is_new or (situation.checkout is not None and not situation.checkout.remote):
        yield _Step(
            "Create a repository at GitHub, and add it as a git remote",
            (f"git remote add origin {situation.page}.git",),
        )
    yield _whose_actions(situation)
    if not situation.ignores_keys:
        # On a line of its own, also where the last one has no end.
        yield _Step("Keep secret keys out of git", (f"printf '\\n{KEY_FILES}\\n' >> {IGNORED}",))
    key = situation.key
    github = situation.github
    of_repo, secrets = "", "the repository's Settings, Secrets"
    if github is not None:
        of_repo = f" --repo {github}" if github.host == GITHUB else f" --repo {github.host}/{github}"
        secrets = f"{situation.page}/settings/secrets/actions"
    yield _Step(
        f"Make a key pair, and give GitHub {key}.sec, by gh or at {secrets}; nobody else may see that file",
        (f"{situation.program} keygen {key}", f"gh secret set NIX_SIGNING_KEY{of_repo} < {key}.sec"),
    )
    yield from _publishing(situation)
    yield _Step(f"Let everybody read the package, or give clients a token: {_package_settings(situation)}")
    registry = situation.choices.registry
    of_registry = f"NIXCACHE_REGISTRY={registry} " if registry is not None else ""
    settings = f"{of_registry}NIXCACHE_REPO={situation.repo}"
    yield _Step(
        f"On each client, serve the cache, and point Nix at it with the key in {key}.pub",
        (f"{settings} {PROGRAM} proxy", f'{PROGRAM} use --apply --public-key "$(cat {key}.pub)"'),
    )


def _whose_actions(situation: Situation) -> _Step:
    actions, ref = situation.choices.actions, situation.choices.ref
    if actions == PLACEHOLDER or ref == PLACEHOLDER_REF:
        named = "OWNER/NAME" if actions == PLACEHOLDER else actions
        left = [f"replace {PLACEHOLDER_REF} with a commit of {named}"]
        if actions == PLACEHOLDER:
            left = [
                f"replace {PLACEHOLDER} with the nixcache-oci that you trust",
                f"{PLACEHOLDER_REF} with a commit of it",
            ]
        flake = situation.choices.flake
        of_flake = "" if flake == FLAKE_FOLDER else f" --flake {shlex.quote(flake)}"
        return _Step(
            f"In {WORKFLOWS}, {', and '.join(left)}: whoever owns that repository runs code beside your "
            f"signing key, and until then no workflow starts. To do so: {situation.program} init{of_flake} "
            f"--actions {named}@COMMIT"
        )
    text = f"Check that {ref} exists, and that you trust it: {situation.web}/{actions}/tree/{ref}"
    if _COMMIT.fullmatch(ref):
        return _Step(text)
    return _Step(f"{text} (its owner can move a tag or branch, but not a commit, which is 40 digits)")


def _publishing(situation: Situation) -> Iterator[_Step]:
    choices = situation.choices
    at_top = choices.flake == "."
    folder = "." if at_top else f"./{choices.flake}"
    yield _Step(
        f"Check that {choices.flake_file} has what you want to publish, and lock it; Nix sees only what git"
        " tracks",
        (
            f"git add .github {choices.flake_file if at_top else choices.flake} {IGNORED}",
            f"nix flake lock {_FEATURES} {folder}",
        ),
    )
    remote = situation.checkout.remote if situation.checkout is not None else ""
    current = situation.branch
    until = "" if current == choices.branch else f", and merge it into {choices.branch}"
    # By a pattern: a flake without inputs has no lock.
    lock = "flake.*" if at_top else choices.flake
    yield _Step(
        f"Commit and push it{until}; the workflow publish-cache publishes what is pushed to {choices.branch}",
        (
            f"git add {lock}",
            "git commit -m 'Publish a Nix binary cache'",
            f"git push --set-upstream {remote or 'origin'} {shlex.quote(current)}",
        ),
    )


def _package_settings(situation: Situation) -> str:
    if situation.github is None:
        return f"at GitHub, in the repository's Packages, {_IMAGE}, Package settings"
    page = f"{situation.page}/pkgs/container/{situation.github.name.lower()}%2F{_IMAGE}"
    return f"Package settings at {page}"
