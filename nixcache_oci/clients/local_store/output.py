"""Outputs: what a flake or a Nix file has to build, and where in it they are. No I/O."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from nixcache_oci.clients.local_store import expression
from nixcache_oci.nix.store_path import StorePath

MANY: Final = 500
"""Small derivations that one process evaluates; their names have to fit into one argument."""

_WILDCARDS: Final = "*?["


@dataclass(frozen=True, slots=True)
class Installable:
    """How to name something to a command of Nix."""

    arguments: tuple[str, ...]  # of the command
    folder: Path | None = None  # to run the command in; None for the current one


NameForBuild = Callable[[expression.Path], Installable | None]
"""Names an attribute path to ``nix build``; None if that is impossible."""


@dataclass(frozen=True, slots=True)
class Output:
    """A derivation to build."""

    # Name of it and of the root that it becomes: ``packages.x86_64-linux.hello``,
    # ``nixosConfigurations.web``, or an attribute path in a file.
    attr: str
    drv_path: StorePath  # of the derivation, which is in the store
    system: str | None  # such as ``x86_64-linux``; None if not stated
    # Names it to ``nix build``, so that its flake's settings are read; None if impossible.
    installable: Installable | None = None


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """What is not built, and why."""

    attr: str  # an output, or a whole set of them
    reason: str  # one line; Nix's own messages were shown
    is_set: bool = False  # whether it is a set whose outputs are unknown


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to build, and what not."""

    outputs: tuple[Output, ...]  # to build
    failures: tuple[NotBuilt, ...]  # what should be built, but cannot be evaluated
    left_out: tuple[NotBuilt, ...] = ()  # what this machine need not build, such as for other systems


@dataclass(frozen=True, slots=True)
class OutputKind:
    """A set of outputs that flakes have by convention."""

    name: str  # of the attribute
    rest: expression.Path = ()  # path from one of its attributes to the derivation
    is_by_system: bool = False  # whether there is a set per system in between
    former: str = ""  # older attribute that a flake may have instead: one derivation per system
    # Whether each is a whole system's or user's, which may be for another machine.
    is_configuration: bool = False
    os: str = ""  # second part of its systems, such as ``darwin``; empty for any

    @property
    def at_once(self) -> int:
        """How many one process evaluates: only one whole system, which takes gigabytes and many seconds."""
        return 1 if self.is_configuration else MANY


CHECKS: Final = OutputKind("checks", is_by_system=True)
NIXOS_REST: Final = ("config", "system", "build", "toplevel")
KINDS: Final = (
    OutputKind("packages", is_by_system=True, former="defaultPackage"),
    OutputKind("devShells", is_by_system=True, former="devShell"),
    CHECKS,
    OutputKind("nixosConfigurations", NIXOS_REST, is_configuration=True, os="linux"),
    OutputKind("homeConfigurations", ("activationPackage",), is_configuration=True),
    OutputKind("darwinConfigurations", ("system",), is_configuration=True, os="darwin"),
)
JOBS: Final = "hydraJobs"
LEGACY_PACKAGES: Final = "legacyPackages"
BY_SYSTEM: Final = frozenset(
    {LEGACY_PACKAGES, *(name for kind in KINDS if kind.is_by_system for name in (kind.name, kind.former))}
)

SYSTEM_PLACES: Final[tuple[expression.Path, ...]] = (
    ("config", "nixpkgs", "hostPlatform"),
    ("pkgs", "stdenv", "hostPlatform"),
    ("pkgs",),
    ("config", "nixpkgs"),
    (),
)
"""Places in a configuration that may say which system it is for."""


@dataclass(frozen=True, slots=True)
class OutputSet:
    """A set of attributes that Nix can be asked about."""

    asked: Installable  # what to ask Nix for
    path: expression.Path  # of the set; empty for a file
    kind: OutputKind  # of its attributes
    inner: expression.Path = ()  # path to the set from ``asked``
    is_wanted: bool = True  # whether an attribute that cannot be evaluated is a failure
    pattern: str | None = None  # of paths within it; None for the user's patterns
    name_for_build: NameForBuild | None = None  # see ``NameForBuild``; None for a file

    @property
    def is_deep(self) -> bool:
        """Whether each set in it is a set of further outputs."""
        return self.path[:1] == (JOBS,)

    def attr(self, within: expression.Path) -> str:
        """Write the path of one attribute."""
        return expression.write_path((*self.path, *within))

    def steps(self, within: expression.Path) -> expression.Path:
        """Return the path from ``asked`` to an attribute's derivation."""
        return (*self.inner, *within, *self.kind.rest)

    def installable(self, within: expression.Path) -> Installable | None:
        """Name the derivation to ``nix build``."""
        return self.name_for_build((*self.path, *within, *self.kind.rest)) if self.name_for_build else None

    def may_hold(self, within: expression.Path) -> bool:
        """Tell whether an attribute matches the pattern, or may contain one that does."""
        if self.pattern is None:
            return True
        letters = min((self.pattern.find(one) for one in _WILDCARDS if one in self.pattern), default=None)
        start, text = self.pattern[:letters], f"{expression.write_path(within)}."
        return text.startswith(start) or start.startswith(text)

    def is_meant(self, within: expression.Path) -> bool:
        """Tell whether an attribute matches the pattern."""
        return self.pattern is None or fnmatchcase(expression.write_path(within), self.pattern)

    def find_matching(self, name: str, patterns: Iterable[str]) -> Iterator[str]:
        """Find the user's patterns that match a name: in full, without the system, or by itself."""
        spellings = (self.attr((name,)), f"{self.kind.name}.{expression.write_attribute(name)}", name)
        for pattern in patterns:
            if pattern in spellings or any(fnmatchcase(spelling, pattern) for spelling in spellings):
                yield pattern


def is_pattern(attr: str) -> bool:
    """Tell whether an argument may match several attributes."""
    return any(letter in attr for letter in _WILDCARDS)


def find_candidates(path: expression.Path, systems: Iterable[str]) -> Iterator[expression.Path]:
    """Yield where in a flake an attribute path may lead, in the order of ``nix build``.

    Unlike there, the system may be omitted after the names that need one.
    """
    systems = list(systems)
    yield from ((kind, system, *path) for system in systems for kind in ("packages", LEGACY_PACKAGES))
    if path[0] in BY_SYSTEM:
        yield from ((path[0], system, *path[1:]) for system in systems)
    yield path
