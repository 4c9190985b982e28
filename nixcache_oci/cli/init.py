"""The verb ``init``: makes a repository one whose workflows publish a cache."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import Final

from nixcache_oci.cli.command import own_program
from nixcache_oci.cli.compose import run_async
from nixcache_oci.cli.console import complain, say
from nixcache_oci.cli.init_steps import KEY_FILES, Situation, say_next_steps
from nixcache_oci.cli.starter import (
    BRANCH,
    FLAKE_FOLDER,
    IGNORED,
    PLACEHOLDER,
    PLACEHOLDER_REF,
    WORKFLOWS,
    Choices,
    Plan,
    compare,
    write,
)
from nixcache_oci.cli.verb import DONE
from nixcache_oci.clients.local_store.git import (
    GITHUB,
    Checkout,
    GithubRepository,
    parse_remote,
    read_checkout,
)
from nixcache_oci.errors import Error, UsageError
from nixcache_oci.settings.values import Values

# As GitHub names repositories, and what a ref may hold that stands in a line of YAML.
_ACTIONS = re.compile(r"(?P<actions>[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+)(?:@(?P<ref>[A-Za-z0-9._/-]+))?")
# What no repository and no ref is called, though each letter may be in it: git-check-ref-format(1).
_IMPOSSIBLE = re.compile(
    r"[^@]*/\.\.?(?:@.*)?"  # a folder, or the one above it
    r"|.*@(?:-.*|/.*|.*/|.*\.|.*//.*|.*\.\..*|(?:.*/)?\..*|.*\.lock(?:/.*)?)"
)
# As above, without the characters that GitHub takes for a pattern.
_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_FLAKE = re.compile(r"\.|[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_ENTERPRISE: Final = re.compile(r"(?:.*[.-])?(?:github|ghe)[.-].*|.*\.ghe\.com")

DESCRIPTION = (
    "Write GitHub workflows that publish, update and collect a cache, and a flake to start "
    "from, into a repository, and print the next steps, filled in from git. A file that "
    "exists is never overwritten: if one differs, nothing is written."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path(),
        help="the repository [default: the current folder]",
    )
    parser.add_argument(
        "--actions",
        metavar="OWNER/NAME@COMMIT",
        help=(
            "GitHub repository of nixcache-oci whose actions the workflows use, and a commit or tag of it; "
            "without it, the workflows get a placeholder that you must replace"
        ),
    )
    parser.add_argument(
        "--flake",
        metavar="FOLDER",
        help=(
            "folder of the flake to publish, below the repository's top (`.` is the top itself); an existing "
            f"flake is left alone [default: . if only the top has a flake, else {FLAKE_FOLDER}]"
        ),
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be written, and write nothing"
    )


def run(values: Values) -> int:
    """Write what is missing, and say what to do next."""
    arguments, environment = values.flags, values.environment
    actions, ref = _parse_actions(arguments.actions)
    folder: Path = arguments.folder
    flake = _choose_flake(folder, arguments.flake)
    checkout = run_async(read_checkout(folder, environment))
    github = _find_github(checkout)
    branch = checkout.branch if checkout is not None and _BRANCH.fullmatch(checkout.branch) else BRANCH
    choices = Choices(actions, ref, flake, branch, github.registry if github is not None else None)
    plan = _leave_own(folder, compare(folder, choices), choices, is_flake_chosen=arguments.flake is not None)
    if plan.different:
        raise Error(
            f"{folder}: {', '.join(plan.different)} would be overwritten; nothing was written. Move those "
            "files away, run init again, and merge your changes back"
        )
    if not arguments.dry_run:
        write(folder, plan.missing)
    verb = "would write" if arguments.dry_run else "wrote"
    for file in plan.missing:
        say(f"{verb} {folder / file.name}")
    for name in plan.same:
        say(f"unchanged: {folder / name}")
    _warn_of_place(folder)
    if not arguments.dry_run:
        ignores_keys = _ignores_secret_keys(folder / IGNORED)
        program = own_program(environment)
        situation = Situation(folder, choices, checkout, github, ignores_keys, program)
        say(*say_next_steps(situation).splitlines())
    return DONE


def _parse_actions(given: str | None) -> tuple[str, str]:
    """Read ``owner/name@ref``; a missing part becomes a placeholder, with which no workflow starts."""
    if given is None:
        return PLACEHOLDER, PLACEHOLDER_REF
    named = _ACTIONS.fullmatch(given)
    if named is None or _IMPOSSIBLE.fullmatch(given):
        raise UsageError(f"--actions {given!r}: write it like OWNER/NAME@COMMIT; a tag works too")
    return named["actions"], named["ref"] or PLACEHOLDER_REF


def _choose_flake(folder: Path, given: str | None) -> str:
    if given is not None:
        flake = given.removeprefix("./").rstrip("/") or "."
        if _FLAKE.fullmatch(flake) is None:
            raise UsageError(
                f"--flake {given!r}: expected a folder below the repository's top, such as . or nix"
            )
        return flake
    is_at_top = (folder / "flake.nix").exists() and not (folder / FLAKE_FOLDER / "flake.nix").exists()
    return "." if is_at_top else FLAKE_FOLDER


def _find_github(checkout: Checkout | None) -> GithubRepository | None:
    """Find the repository at GitHub; warn if its host can be none of GitHub's."""
    github = parse_remote(checkout.url) if checkout is not None else None
    if github is None or github.registry is None or _ENTERPRISE.fullmatch(github.host):
        return github
    _warn(
        f"git's remote is at {github.host}, but only GitHub runs these workflows; if that is a "
        f"GitHub Enterprise server, set the input registry of their actions publish and gc: {github.registry}"
    )
    return replace(github, host=GITHUB)


def _leave_own(folder: Path, plan: Plan, choices: Choices, *, is_flake_chosen: bool) -> Plan:
    """Leave alone what is the user's own: .gitignore always, and a flake that is meant to be published.

    A flake is meant if it was named, if it is at the top, or if an earlier run wrote workflows for it.
    """
    was_here = (folder / WORKFLOWS / "publish-cache.yml").exists()
    is_own = is_flake_chosen or was_here or choices.flake != FLAKE_FOLDER
    return plan.without(IGNORED, *([choices.flake_file] if is_own else []))


def _warn_of_place(folder: Path) -> None:
    whole = folder.resolve()
    if (whole / ".git").exists():
        return
    top = next((parent for parent in whole.parents if (parent / ".git").exists()), None)
    found = "not a git repository yet" if top is None else f"not the top of the git repository {top}"
    _warn(f"{folder} is {found}; GitHub runs workflows from the top only")


def _warn(line: str) -> None:
    complain(f"nixcache-oci: warning: {line}")


def _ignores_secret_keys(ignored: Path) -> bool:
    try:
        return KEY_FILES in ignored.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
