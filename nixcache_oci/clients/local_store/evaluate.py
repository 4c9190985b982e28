"""Finds the outputs of a flake or a Nix file."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from nixcache_oci.clients.local_store import expression
from nixcache_oci.clients.local_store.evaluator import Evaluator
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.nix_settings import Systems
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
    """Find a flake's outputs: packages, shells, checks, and configurations of whole systems.

    Args:
        nix: to evaluate with.
        flake: a flake reference or folder; ``FLAKE#ATTR`` adds one to ``attrs``.
        systems: to build for.
        attrs: names or patterns that narrow it: full attributes (``packages.x86_64-linux.hello``), without
            the system (``packages.hello``), or the name alone (``hello``); or any attribute path that
            ``nix build`` accepts. Empty for all.
        with_checks: whether to include checks; a name that begins with ``checks.`` also does.
        accept_flake_config: whether the flake's own settings are obeyed.

    Raises:
        UsageError: Nix is missing or too old, or one of ``attrs`` matches nothing.
        StoreError: the flake cannot be read at all.
    """
    reference, folder, attr = await asyncio.to_thread(_find_flake, flake)
    attrs = (*attrs, attr) if attr else attrs
    # A leading dot keeps Nix from looking for every attribute among the packages first, where one that cannot
    # be evaluated would hide the rest. Older versions do not know it.
    dot = "" if await nix.require_version() < _FIRST_WITHOUT_SEARCH else "."
    # With --accept-flake-config, Nix 2.8 misses attributes of a set where one aborted, in some folders.
    accepting = ("--option", "accept-flake-config", "true") if accept_flake_config else ()
    await nix.ask("flake", "metadata", "--json", *accepting, reference, folder=folder)
    asked = _Flake(f"{reference}#{dot}", folder, accepting)
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
    """Find a Nix file's outputs: the derivation that it is, or those in its set.

    Args:
        nix: to evaluate with.
        file: as for ``nix-build``; a folder means its default.nix.
        systems: to build for.
        attrs: attribute paths, or patterns for what is in a set. Empty for all.

    Raises:
        UsageError: Nix is missing or too old, there is no such file, or a pattern matches nothing.
    """
    await nix.require_version()
    # As `nix-build --system`: the expression sees the system that it is evaluated for.
    chosen = ("--option", "system", systems.asked[0]) if systems.is_named else ()
    arguments = (*chosen, "--impure", "--file", await asyncio.to_thread(_find_file, file))

    def locate(path: expression.Path) -> tuple[Installable, expression.Path]:
        # Nix resolves the path itself, because it also calls functions on the way.
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
    """Names parts of a flake for Nix."""

    prefix: str  # of an attribute path
    # Of the flake, which Nix runs in, because it accepts any folder name only as ``.``; or None.
    folder: Path | None
    accepting: tuple[str, ...]  # further arguments

    def locate(self, path: expression.Path) -> tuple[Installable, expression.Path]:
        """Return a part that every version of Nix can be asked for, and the rest of the path from there."""
        most = 2 if path[0] in BY_SYSTEM else 1
        return self._ask_for(path[:most]), path[most:]

    def name_for_build(self, path: expression.Path) -> Installable | None:
        """Name a derivation; None if it needs escapes, which Nix's command line does not know."""
        return None if "\\" in expression.write_path(path) else Installable((self._write(path),), self.folder)

    def find_set(self, kind: OutputKind, system: str | None = None, *, is_wanted: bool = True) -> OutputSet:
        """Return the set of all outputs of a kind."""
        path = (kind.name,) if system is None else (kind.name, system)
        asked = self._ask_for(path)
        return OutputSet(asked, path, kind, is_wanted=is_wanted, name_for_build=self.name_for_build)

    def _ask_for(self, path: expression.Path) -> Installable:
        return Installable((*self.accepting, self._write(path)), self.folder)

    def _write(self, path: expression.Path) -> str:
        return self.prefix + quote(expression.write_path(path), safe='."')  # as part of a URL


def _find_flake(flake: str) -> tuple[str, Path | None, str]:
    """Return a flake's reference, the folder to use it in, and the attribute behind ``#``, as in `nix build`.

    A folder is named ``.`` from within: its name may have a meaning in a URL, and a bare name would be looked
    up in the flake registry.
    """
    attr = ""
    if not Path(flake).is_dir():
        flake, _, attr = flake.partition("#")
        flake = flake or "."
    if flake.startswith("-"):
        raise UsageError(f"{flake}: expected a flake; a folder of this name is written ./{flake}")
    folder = Path(flake)
    return (".", folder, unquote(attr)) if folder.is_dir() else (flake, None, unquote(attr))


def _find_file(file: Path) -> str:
    if not file.exists():
        raise UsageError(f"{file}: no such file")
    return str(file.absolute())


def _choose_kinds(attrs: Sequence[str], *, with_checks: bool) -> list[OutputKind]:
    """Choose the kinds that are asked for: errors in others do not matter."""
    heads = {attr.split(".")[0] for attr in attrs}
    is_narrowed = bool(heads) and heads <= _TOP_LEVEL
    return [
        kind
        for kind in KINDS
        if kind.name in heads or (not is_narrowed and (kind is not CHECKS or with_checks))
    ]


def _split_pattern(attr: str) -> tuple[expression.Path, str | None]:
    """Split an argument into its attributes before the first pattern, and the rest; empty if malformed."""
    try:
        parts = expression.split_path(attr)
        count = next((number for number, part in enumerate(parts) if is_pattern(part)), len(parts))
        head = expression.parse_path(".".join(parts[:count])) if count else ()
    except FormatError:
        return (), None
    return head, ".".join(parts[count:]) or None
