"""The verb ``init``: makes a repository one whose workflows publish a cache."""

import argparse
import re
import sys
from collections.abc import MutableMapping
from pathlib import Path

from nixcache_oci.cli.starter import (
    FLAKE,
    IGNORED,
    PLACEHOLDER,
    PLACEHOLDER_REF,
    WORKFLOWS,
    Plan,
    compare,
    read_starter,
    write,
)
from nixcache_oci.cli.verb import DONE, SubParsers
from nixcache_oci.errors import Error, UsageError

# As GitHub names repositories, and what a ref may hold that stands in a line of YAML.
_ACTIONS = re.compile(r"(?P<actions>[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+)@(?P<ref>[A-Za-z0-9._/-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEY_FILES = "*.sec"


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    parser = subparsers.add_parser(
        "init",
        description=(
            "Write GitHub workflows that publish, update and collect a cache, and a flake to start "
            "from, into a repository. A file that exists is never overwritten: where one differs, nothing is "
            "written."
        ),
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path(),
        help="repository; the current folder",
    )
    parser.add_argument(
        "--actions",
        metavar="OWNER/NAME@COMMIT",
        help=(
            "GitHub repository of nixcache-oci whose actions the workflows use, and a commit or tag of it; "
            "without it, workflows get a name that has to be replaced"
        ),
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written, and write nothing")


def run(arguments: argparse.Namespace, _environment: MutableMapping[str, str]) -> int:
    """Write what is missing, and say what to do next."""
    actions, ref = PLACEHOLDER, PLACEHOLDER_REF
    if arguments.actions is not None:
        named = _ACTIONS.fullmatch(arguments.actions)
        if named is None:
            raise UsageError(
                f"--actions {arguments.actions!r}: write it like OWNER/NAME@COMMIT; a tag does, too"
            )
        actions, ref = named["actions"], named["ref"]
    folder: Path = arguments.folder
    plan = _leave_ignored(compare(folder, read_starter(actions, ref)))
    if plan.different:
        raise Error(
            f"{folder}: {', '.join(plan.different)} would be overwritten; nothing was written. Move away "
            "what differs, run init again, and put your changes back"
        )
    if not arguments.dry_run:
        write(folder, plan.missing)
    verb = "would write" if arguments.dry_run else "wrote"
    for file in plan.missing:
        print(f"{verb} {folder / file.name}")
    for name in plan.same:
        print(f"as it should be: {folder / name}")
    _warn_of_place(folder)
    if not arguments.dry_run:
        print(_say_next_steps(folder, _say_of_actions(actions, ref)))
    return DONE


def _leave_ignored(plan: Plan) -> Plan:
    """Leave a .gitignore alone that is there: nearly every repository has its own."""
    return Plan(plan.missing, plan.same, tuple(name for name in plan.different if name != IGNORED))


def _warn_of_place(folder: Path) -> None:
    whole = folder.resolve()
    if (whole / ".git").exists():
        return
    top = next((parent for parent in whole.parents if (parent / ".git").exists()), None)
    found = "not a git repository yet" if top is None else f"not the top of the git repository {top}"
    print(
        f"nixcache-oci: warning: {folder} is {found}; GitHub runs workflows from the top only",
        file=sys.stderr,
    )


def _say_of_actions(actions: str, ref: str) -> str:
    if actions == PLACEHOLDER:
        return (
            f"in {WORKFLOWS}, replace {PLACEHOLDER} by the nixcache-oci that you trust, and "
            f"{PLACEHOLDER_REF} by a commit of it: whoever owns that repository runs code beside your "
            "signing key. Until then, no workflow starts"
        )
    step = f"see that {ref} is there, and is what you trust: https://github.com/{actions}/tree/{ref}"
    if _COMMIT.fullmatch(ref):
        return step
    return f"{step} (its owner can move a tag or branch, but not a commit, which is 40 digits)"


def _say_next_steps(folder: Path, of_actions: str) -> str:
    steps = [
        of_actions,
        "nixcache-oci keygen NAME-1, and gh secret set NIX_SIGNING_KEY < NAME-1.sec; keep that file safe",
        f"put your own outputs into {FLAKE}, then: nix flake lock ./config",
        "git add .github config .gitignore, commit, and push to main. Workflow publish-cache publishes",
        "make the package public, at GitHub: Packages, nix-cache, Package settings; or give clients a token",
        "on each client: NIXCACHE_REPO=OWNER/NAME nixcache-oci proxy, and nixcache-oci use for its nix.conf",
    ]
    if not _ignores_secret_keys(folder / IGNORED):
        steps.insert(0, f"add {_KEY_FILES} to {IGNORED}, so that no secret key is committed")
    return "\n".join(["Next:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))])


def _ignores_secret_keys(ignored: Path) -> bool:
    try:
        return _KEY_FILES in ignored.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
