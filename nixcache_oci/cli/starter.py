"""The files that make a repository publish a cache: read out of this package, compared, and written.

They are in the package's folder ``starter``, which is also the flake's template. Its README.md is left out:
a repository that exists has one.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Final

from nixcache_oci.clients.durable_file import unfinished_name
from nixcache_oci.errors import Error

# What the workflows name until an owner is chosen, who runs code beside the signing key. No account at GitHub
# can have this name: letters, digits and single hyphens, at most 39. GitHub ends such a job before its first
# step, and names what it cannot find.
PLACEHOLDER: Final = "__PUT-THE-OWNER-OF-YOUR-NIXCACHE-OCI-HERE__/nixcache-oci"
PLACEHOLDER_REF: Final = "PUT-A-COMMIT-HERE"

WORKFLOWS: Final = ".github/workflows"
IGNORED: Final = ".gitignore"
FLAKE_FOLDER: Final = "config"
BRANCH: Final = "main"

_BRANCHES: Final = "branches: [main]"
_PLAIN_BRANCHES: Final = frozenset({"main", "master"})
_ACTION = re.compile(r"(?P<before> +(?:- )?)uses: \S+/workflows/(?P<action>[a-z-]+)@\S+\n")


@dataclass(frozen=True, slots=True)
class Choices:
    """What is filled into the workflows.

    Attributes:
        actions: ``owner/name`` of the repository whose actions they use, at ``ref``.
        flake: folder of the flake that is published, relative to the repository's top.
        branch: whose pushes are published.
        registry: an enterprise's container registry; None for ghcr.io.
    """

    actions: str = PLACEHOLDER
    ref: str = PLACEHOLDER_REF
    flake: str = FLAKE_FOLDER
    branch: str = BRANCH
    registry: str | None = None

    @property
    def flake_file(self) -> str:
        """The flake's file, relative to the repository's top."""
        return "flake.nix" if self.flake == "." else f"{self.flake}/flake.nix"

    def unfinished(self) -> Iterator["Choices"]:
        """Give the choices of earlier runs that left places to fill in."""
        each = product({PLACEHOLDER, self.actions}, {BRANCH, self.branch}, {None, self.registry})
        for actions, branch, registry in each:
            yield replace(self, actions=actions, ref=PLACEHOLDER_REF, branch=branch, registry=registry)


@dataclass(frozen=True, slots=True)
class StarterFile:
    """One file of the starter; its name is relative to the repository's folder, with slashes.

    Attributes:
        replaced: the file that an earlier run wrote, unchanged since; None where there is none.
    """

    name: str
    content: bytes
    replaced: bytes | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The files that are to be written, and the names of those that exist, with this or another content."""

    missing: tuple[StarterFile, ...]
    same: tuple[str, ...]
    different: tuple[str, ...]

    def without(self, *names: str) -> "Plan":
        """Accept existing files of these names, whatever they hold."""
        return replace(self, different=tuple(name for name in self.different if name not in names))


def read_starter(choices: Choices) -> tuple[StarterFile, ...]:
    """Read the starter's files, and fill in what was chosen."""
    starter = files("nixcache_oci").joinpath("starter")
    folder = starter.joinpath(*WORKFLOWS.split("/"))
    workflows = [
        StarterFile(f"{WORKFLOWS}/{one.name}", _fill_in(one.read_text(encoding="utf-8"), choices).encode())
        for one in sorted(folder.iterdir(), key=lambda entry: entry.name)
    ]
    flake = starter.joinpath(FLAKE_FOLDER, "flake.nix").read_bytes()
    return (
        *workflows,
        StarterFile(IGNORED, starter.joinpath(IGNORED).read_bytes()),
        StarterFile(choices.flake_file, flake.replace(PLACEHOLDER.encode(), choices.actions.encode())),
    )


def compare(folder: Path, choices: Choices) -> Plan:
    """Compare the files with the folder; what cannot be read counts as different."""
    unfinished: dict[str, set[bytes]] = {}
    for earlier in choices.unfinished():
        for file in read_starter(earlier):
            unfinished.setdefault(file.name, set()).add(file.content)
    missing, same, different = [], [], []
    for file in read_starter(choices):
        path = folder / file.name
        try:
            found = path.read_bytes()
        except OSError:
            found = None
        if not os.path.lexists(path):
            missing.append(file)
        elif found == file.content:
            same.append(file.name)
        elif found is not None and found in unfinished[file.name]:
            missing.append(replace(file, replaced=found))
        else:
            different.append(file.name)
    return Plan(tuple(missing), tuple(same), tuple(different))


def write(folder: Path, missing: Sequence[StarterFile]) -> None:
    """Write all of the files and their folders, or nothing.

    Raises:
        Error: one could not be written; what was made before it was removed.
    """
    with contextlib.ExitStack() as undo:
        for file in missing:
            path = folder / file.name
            try:
                for parent in reversed((path.parent, *path.parent.parents)):
                    if not parent.exists():
                        parent.mkdir()
                        undo.callback(parent.rmdir)
                if file.replaced is None:
                    # Never over a file that somebody made meanwhile.
                    with path.open("xb") as opened:
                        undo.callback(path.unlink)
                        opened.write(file.content)
                else:
                    _replace(path, file.content)
                    undo.callback(_replace, path, file.replaced)
            except OSError as error:
                raise Error(f"{error.filename or path}: {error.strerror}; nothing was written") from None
        undo.pop_all()


def _fill_in(text: str, choices: Choices) -> str:
    """Fill in a workflow; a choice that is the starter's own changes nothing."""
    inputs: Mapping[str, Mapping[str, str]] = {
        "publish": _changed(choices, "flake", "registry"),
        "update": _changed(choices, "flake"),
        "gc": _changed(choices, "registry"),
    }
    filled: list[str] = []
    heading = ""  # of the inputs that the last line's action was given
    for line in text.splitlines(keepends=True):
        if line == heading:
            continue
        heading = ""
        action = _ACTION.fullmatch(line)
        if action is None:
            filled.append(line.replace(f"{FLAKE_FOLDER}/flake.nix", choices.flake_file))
            continue
        # A reference to an action is a line of its own, and inputs come below it.
        named = line.replace(PLACEHOLDER, choices.actions)
        filled.append(named.replace(f"@{PLACEHOLDER_REF}", f"@{choices.ref}"))
        if added := inputs.get(action["action"]):
            indent = " " * len(action["before"])
            heading = f"{indent}with:\n"
            filled += [heading, *(f"{indent}  {name}: {value}\n" for name, value in added.items())]
    branch = choices.branch if choices.branch in _PLAIN_BRANCHES else f'"{choices.branch}"'
    return "".join(filled).replace(_BRANCHES, f"branches: [{branch}]")


def _changed(choices: Choices, *names: str) -> dict[str, str]:
    """Find the inputs that differ from the actions' own defaults."""
    usual = Choices()
    given = {name: getattr(choices, name) for name in names}
    return {name: value for name, value in given.items() if value != getattr(usual, name)}


def _replace(path: Path, content: bytes) -> None:
    """Replace a file in one step."""
    candidate = path.parent / unfinished_name()
    try:
        candidate.write_bytes(content)
        candidate.chmod(path.stat().st_mode & 0o777)
        candidate.replace(path)
    finally:
        candidate.unlink(missing_ok=True)
