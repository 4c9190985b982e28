"""The files that make a repository publish a cache: read out of this package, compared, and written.

They lie in the package's folder ``starter``, which is also the flake's template. Its README.md is for
those who begin with an empty repository, and is left out here: a repository that exists has one.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from nixcache_oci.errors import Error

# What the starter's workflows name, until somebody says whose actions they are to use. Whoever owns that name
# runs code beside the signing key, so it is one that no account at GitHub can have: those are letters, digits
# and single hyphens, at most 39. GitHub ends such a job before its first step, and names what it cannot find.
PLACEHOLDER: Final = "__PUT-THE-OWNER-OF-YOUR-NIXCACHE-OCI-HERE__/nixcache-oci"
PLACEHOLDER_REF: Final = "PUT-A-COMMIT-HERE"

WORKFLOWS: Final = ".github/workflows"
IGNORED: Final = ".gitignore"
FLAKE: Final = "config/flake.nix"

_WORKFLOW_FOLDER: Final = (".github", "workflows")


@dataclass(frozen=True, slots=True)
class StarterFile:
    """One file of the starter.

    Attributes:
        name: relative to the repository's folder, with slashes.
        content: what it holds.
    """

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be written, and what is there already.

    Attributes:
        missing: to be written.
        same: names of those that are there, with the same content.
        different: names of those that are there, with something else.
    """

    missing: tuple[StarterFile, ...]
    same: tuple[str, ...]
    different: tuple[str, ...]


def read_starter(actions: str, ref: str) -> tuple[StarterFile, ...]:
    """Read the starter's files.

    Args:
        actions: ``owner/name`` of the repository whose actions the workflows use.
        ref: its branch, tag or commit.
    """
    starter = files("nixcache_oci").joinpath("starter")
    named = f"{PLACEHOLDER}/workflows/", f"@{PLACEHOLDER_REF}"
    workflows = [
        StarterFile(
            f"{WORKFLOWS}/{workflow.name}",
            "".join(
                # A reference to an action is a line of its own.
                line.replace(named[0], f"{actions}/workflows/").replace(named[1], f"@{ref}")
                if named[0] in line
                else line
                for line in workflow.read_text(encoding="utf-8").splitlines(keepends=True)
            ).encode(),
        )
        for workflow in _by_name(starter.joinpath(*_WORKFLOW_FOLDER))
    ]
    others = [
        StarterFile(
            name,
            starter.joinpath(*name.split("/")).read_bytes().replace(PLACEHOLDER.encode(), actions.encode()),
        )
        for name in (IGNORED, FLAKE)
    ]
    return (*workflows, *others)


def compare(folder: Path, starter: Sequence[StarterFile]) -> Plan:
    """See which of the files are there; a name that cannot be read as a file counts as different."""
    missing, same, different = [], [], []
    for file in starter:
        path = folder / file.name
        if not os.path.lexists(path):
            missing.append(file)
        elif _holds(path, file.content):
            same.append(file.name)
        else:
            different.append(file.name)
    return Plan(tuple(missing), tuple(same), tuple(different))


def write(folder: Path, missing: Sequence[StarterFile]) -> None:
    """Write all of the files, and the folders that they need, or nothing.

    Raises:
        Error: one could not be written; what was made before it is gone again.
    """
    with contextlib.ExitStack() as undo:
        for file in missing:
            path = folder / file.name
            try:
                for parent in _missing_folders(path.parent):
                    parent.mkdir()
                    undo.callback(parent.rmdir)
                # Never over a file that somebody made meanwhile.
                with path.open("xb") as opened:
                    undo.callback(path.unlink)
                    opened.write(file.content)
            except OSError as error:
                raise Error(f"{error.filename or path}: {error.strerror}; nothing was written") from None
        undo.pop_all()


def _by_name(folder: Traversable) -> list[Traversable]:
    return sorted(folder.iterdir(), key=lambda entry: entry.name)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


def _missing_folders(folder: Path) -> Iterator[Path]:
    """The outermost first."""
    for candidate in reversed((folder, *folder.parents)):
        if not candidate.exists():
            yield candidate
