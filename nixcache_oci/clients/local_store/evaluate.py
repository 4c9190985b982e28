"""What a flake, or a Nix file, has to build."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from nixcache_oci.clients.local_store import expression
from nixcache_oci.clients.local_store.evaluator import Evaluator, evaluate_sets
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.output import CHECKS, KINDS, MANY, Evaluation, OutputKind, OutputSet
from nixcache_oci.errors import UsageError

_FIRST_WITHOUT_SEARCH: Final = (2, 26, 0)


async def current_system(nix: Nix) -> str:
    """Tell what this machine builds for, such as ``x86_64-linux``.

    Raises:
        UsageError: Nix is missing, or too old.
        StoreError: Nix refused.
    """
    await nix.require_version()
    return (await nix.ask("eval", "--impure", "--raw", "--expr", "builtins.currentSystem")).decode()


async def evaluate_flake(
    nix: Nix,
    flake: str,
    system: str,
    *,
    attrs: Sequence[str] = (),
    with_checks: bool = False,
    accept_flake_config: bool = False,
) -> Evaluation:
    """Find what a flake has to build: packages, shells, checks, and configurations of whole systems.

    Args:
        nix: evaluates.
        flake: reference of a flake, or a folder; without an attribute.
        system: whose packages, shells and checks.
        attrs: names, or patterns with ``*``, to which it is narrowed: of attributes in full
            (``packages.x86_64-linux.hello``), without the system (``packages.hello``), or alone (``hello``).
            Empty for all.
        with_checks: whether checks count, too; they also do where a name begins with ``checks.``.
        accept_flake_config: whether the settings that the flake brings with it are obeyed.

    Raises:
        UsageError: Nix is missing or too old, or one of ``attrs`` means nothing.
        StoreError: the flake cannot be read at all.
    """
    reference = await asyncio.to_thread(_find_reference, flake)
    is_searching = await nix.require_version() < _FIRST_WITHOUT_SEARCH
    accepting = ("--accept-flake-config",) if accept_flake_config else ()
    await nix.ask("flake", "metadata", "--json", *accepting, reference)
    # Older versions look for every attribute among the packages first. A dot keeps newer ones from it, so
    # that packages that cannot be evaluated do not hide the rest.
    prefix = f"{reference}#" if is_searching else f"{reference}#."
    wants_checks = with_checks or any(attr.startswith("checks.") for attr in attrs)
    sets = []
    for kind in KINDS:
        if kind is CHECKS and not wants_checks:
            continue
        label = f"{kind.name}.{expression.write_attribute(system)}" if kind.is_by_system else kind.name
        sets.append(OutputSet(label, (f"{prefix}{label}", *accepting), kind, prefix))
    return await evaluate_sets(nix, sets, attrs)


async def evaluate_file(nix: Nix, file: Path, *, attrs: Sequence[str] = ()) -> Evaluation:
    """Find what a Nix file has to build: itself, or the derivations in the set that it is.

    Args:
        nix: evaluates.
        file: as ``nix-build`` takes it; a folder means its default.nix.
        attrs: paths of attributes, or patterns with ``*`` of names in the outermost set. Empty for all.

    Raises:
        UsageError: Nix is missing or too old, there is no such file, or a pattern means nothing.
    """
    await nix.require_version()
    arguments = ("--impure", "--file", await asyncio.to_thread(_find_file, file))
    patterns = [attr for attr in attrs if _is_pattern(attr)]
    evaluator = Evaluator(nix, patterns)
    if patterns or not attrs:
        await evaluator.add_set(OutputSet("", arguments, OutputKind("", at_once=MANY)))
    for attr in attrs:
        if not _is_pattern(attr):
            await evaluator.add_derivation(attr, (*arguments, attr))
    return evaluator.finish()


def _find_reference(flake: str) -> str:
    """Make a folder absolute, for a bare name would be looked for in the registry of flakes."""
    if "#" in flake or flake.startswith("-"):
        raise UsageError(f"{flake}: expected a flake without an attribute; narrow it with --attr")
    folder = Path(flake)
    return str(folder.absolute()) if folder.is_dir() else flake


def _find_file(file: Path) -> str:
    if not file.exists():
        raise UsageError(f"{file}: no such file")
    return str(file.absolute())


def _is_pattern(attr: str) -> bool:
    return any(letter in attr for letter in "*?[")
