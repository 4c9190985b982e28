"""What a flake, or a Nix file, has to build."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from nixcache_oci.clients.local_store import expression
from nixcache_oci.clients.local_store.evaluator import Evaluator
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.output import (
    BY_SYSTEM,
    CHECKS,
    JOBS,
    KINDS,
    Evaluation,
    Installable,
    OutputKind,
    OutputSet,
    find_candidates,
    is_pattern,
)
from nixcache_oci.clients.local_store.systems import Systems
from nixcache_oci.errors import FormatError, UsageError

_FIRST_WITHOUT_SEARCH: Final = (2, 26, 0)
_TOP_LEVEL: Final = frozenset({JOBS, *BY_SYSTEM, *(kind.name for kind in KINDS)})


async def evaluate_flake(
    nix: Nix,
    flake: str,
    systems: Systems,
    *,
    attrs: Sequence[str] = (),
    with_checks: bool = False,
    accept_flake_config: bool = False,
) -> Evaluation:
    """Find what a flake has to build: packages, shells, checks, and configurations of whole systems.

    Args:
        nix: evaluates.
        flake: reference of a flake, or a folder; without an attribute.
        systems: that are built for.
        attrs: names, or patterns with ``*``, to which it is narrowed: of attributes in full
            (``packages.x86_64-linux.hello``), without the system (``packages.hello``), or alone (``hello``);
            or any path of attributes that ``nix build`` takes. Empty for all.
        with_checks: whether checks count, too; they also do where a name begins with ``checks.``.
        accept_flake_config: whether the settings that the flake brings with it are obeyed.

    Raises:
        UsageError: Nix is missing or too old, or one of ``attrs`` means nothing.
        StoreError: the flake cannot be read at all.
    """
    reference, folder = await asyncio.to_thread(_find_flake, flake)
    # Older versions look for every attribute among the packages first. A dot keeps newer ones from it, so
    # that packages that cannot be evaluated do not hide the rest.
    dot = "" if await nix.require_version() < _FIRST_WITHOUT_SEARCH else "."
    accepting = ("--accept-flake-config",) if accept_flake_config else ()
    await nix.ask("flake", "metadata", "--json", *accepting, reference, folder=folder)
    # That a tree is dirty was said by now.
    asked = _Flake(f"{reference}#{dot}", folder, ("--no-warn-dirty", *accepting))
    evaluator = Evaluator(nix, systems, attrs)
    for kind in _choose_kinds(attrs, with_checks=with_checks):
        if not kind.is_by_system:
            await evaluator.add_set(asked.find_set(kind))
            continue
        chosen = await evaluator.find_systems(kind, asked.locate((kind.name,))[0])
        for system in chosen:
            await evaluator.add_set(asked.find_set(kind, system, is_wanted=system in systems.asked))
        if kind.former and not chosen and not attrs:
            for system in systems.asked:
                await evaluator.add_set(asked.find_set(OutputKind(kind.former, is_by_system=True), system))
    for attr in evaluator.unmatched():
        head, pattern = _split_pattern(attr)
        if head:
            candidates = find_candidates(head, systems.asked)
            await evaluator.add_path(attr, candidates, asked.locate, asked.name_for_build, pattern)
    return evaluator.finish()


async def evaluate_file(nix: Nix, file: Path, systems: Systems, *, attrs: Sequence[str] = ()) -> Evaluation:
    """Find what a Nix file has to build: itself, or the derivations in the set that it is.

    Args:
        nix: evaluates.
        file: as ``nix-build`` takes it; a folder means its default.nix.
        systems: that are built for.
        attrs: paths of attributes, or patterns with ``*`` of what is in a set. Empty for all.

    Raises:
        UsageError: Nix is missing or too old, there is no such file, or a pattern means nothing.
    """
    await nix.require_version()
    # As `nix-build --system` does it: an expression sees the system that it is evaluated for.
    chosen = ("--option", "system", systems.asked[0]) if systems.is_named else ()
    arguments = (*chosen, "--impure", "--file", await asyncio.to_thread(_find_file, file))

    def locate(path: expression.Path) -> tuple[Installable, expression.Path]:
        # Nix goes there by itself: it also calls functions on the way.
        return Installable((*arguments, "--", expression.write_path(path))), ()

    patterns = [attr for attr in attrs if is_pattern(attr)]
    evaluator = Evaluator(nix, systems, patterns)
    if patterns or not attrs:
        await evaluator.add_set(OutputSet(Installable(arguments), (), OutputKind("")))
    for attr in (*evaluator.unmatched(), *(attr for attr in attrs if not is_pattern(attr))):
        head, pattern = _split_pattern(attr)
        if head:
            await evaluator.add_path(attr, [head], locate, pattern=pattern)
    return evaluator.finish()


@dataclass(frozen=True, slots=True)
class _Flake:
    """How parts of a flake are named to Nix.

    Attributes:
        prefix: what stands before a path of attributes.
        folder: of the flake, in which Nix runs: only there it takes every folder's name; or None.
        accepting: further arguments.
    """

    prefix: str
    folder: Path | None
    accepting: tuple[str, ...]

    def locate(self, path: expression.Path) -> tuple[Installable, expression.Path]:
        """Ask for a part that every version can be asked for; the rest is found from there."""
        most = 2 if path[0] in BY_SYSTEM else 1
        return self._ask_for(path[:most]), path[most:]

    def name_for_build(self, path: expression.Path) -> Installable | None:
        """Name a derivation; escapes mean nothing on Nix's command line."""
        return None if "\\" in expression.write_path(path) else Installable((self._write(path),), self.folder)

    def find_set(self, kind: OutputKind, system: str | None = None, *, is_wanted: bool = True) -> OutputSet:
        """Give the set of all outputs of a kind."""
        path = (kind.name,) if system is None else (kind.name, system)
        asked = self._ask_for(path)
        return OutputSet(asked, path, kind, is_wanted=is_wanted, name_for_build=self.name_for_build)

    def _ask_for(self, path: expression.Path) -> Installable:
        return Installable((*self.accepting, self._write(path)), self.folder)

    def _write(self, path: expression.Path) -> str:
        return self.prefix + quote(expression.write_path(path), safe='."')  # it is part of a URL


def _find_flake(flake: str) -> tuple[str, Path | None]:
    """Tell what to call a flake, and in which folder.

    A folder is named from within: its name may hold what would mean something else in a URL, or nothing, and
    a bare name would be looked for in the registry of flakes.
    """
    folder = Path(flake)
    if folder.is_dir():
        return ".", folder
    if "#" in flake or flake.startswith("-"):
        raise UsageError(f"{flake}: expected a flake without an attribute; narrow it with --attr")
    return flake, None


def _find_file(file: Path) -> str:
    if not file.exists():
        raise UsageError(f"{file}: no such file")
    return str(file.absolute())


def _choose_kinds(attrs: Sequence[str], *, with_checks: bool) -> list[OutputKind]:
    """Leave out what is not asked for: what is wrong with it is nobody's business."""
    heads = {attr.split(".")[0] for attr in attrs}
    is_narrowed = bool(heads) and heads <= _TOP_LEVEL
    return [
        kind
        for kind in KINDS
        if kind.name in heads or (not is_narrowed and (kind is not CHECKS or with_checks))
    ]


def _split_pattern(attr: str) -> tuple[expression.Path, str | None]:
    """Split off what is no pattern; empty where there is none of it, or where it is no path of attributes."""
    try:
        parts = expression.split_path(attr)
        count = next((number for number, part in enumerate(parts) if is_pattern(part)), len(parts))
        head = expression.parse_path(".".join(parts[:count])) if count else ()
    except FormatError:
        return (), None
    return head, ".".join(parts[count:]) or None
