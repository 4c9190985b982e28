"""Outputs: what a flake or a Nix file has to build, and where in it they stand. No I/O."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from nixcache_oci.clients.local_store import expression
from nixcache_oci.nix.store_path import StorePath

MANY: Final = 500
"""How many small derivations one process evaluates; their names have to fit into one argument."""

_WILDCARDS: Final = "*?["


@dataclass(frozen=True, slots=True)
class Installable:
    """What names something to a command of Nix.

    Attributes:
        arguments: that name it.
        folder: that the command has to run in; None for ours.
    """

    arguments: tuple[str, ...]
    folder: Path | None = None


NameForBuild = Callable[[expression.Path], Installable | None]
"""Names a path of attributes to ``nix build``; None where that cannot be written."""


@dataclass(frozen=True, slots=True)
class Output:
    """A derivation to build.

    Attributes:
        attr: names it, and the root that it becomes: ``packages.x86_64-linux.hello``,
            ``nixosConfigurations.web``, or a path of attributes in a file.
        drv_path: of the derivation, which is in the store.
        system: what it is built on, such as ``x86_64-linux``; None where it does not say.
        installable: names it to ``nix build``, so that the settings of its flake are read; None where it
            cannot be named.
    """

    attr: str
    drv_path: StorePath
    system: str | None
    installable: Installable | None = None


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """What is not built, and why.

    Attributes:
        attr: an output, or a whole set of them.
        reason: one line; Nix's own words were shown.
        is_set: whether it is a set, so that nobody can tell which outputs there would be.
    """

    attr: str
    reason: str
    is_set: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What there is to build, and what there would be.

    Attributes:
        outputs: to build.
        failures: what should be there, and cannot be evaluated.
        left_out: what this machine need not build, as for other systems.
    """

    outputs: tuple[Output, ...]
    failures: tuple[NotBuilt, ...]
    left_out: tuple[NotBuilt, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputKind:
    """A set of outputs that flakes have by convention.

    Attributes:
        name: of the attribute.
        rest: what leads from one of its attributes to the derivation.
        is_by_system: whether a set for each system lies between.
        former: what a flake without it may have instead: one derivation for each system.
        is_configuration: whether each is a whole system's or user's, which need not be this machine's.
        os: what its systems have behind the processor, such as ``darwin``; empty where it may be any.
    """

    name: str
    rest: expression.Path = ()
    is_by_system: bool = False
    former: str = ""
    is_configuration: bool = False
    os: str = ""

    @property
    def at_once(self) -> int:
        """How many are evaluated by one process. A whole system takes gigabytes and many seconds: one."""
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
"""Where in a configuration it stands what system it is for."""


@dataclass(frozen=True, slots=True)
class OutputSet:
    """A set of attributes that Nix can be asked about.

    Attributes:
        asked: what Nix is asked for.
        path: of the set; empty for a file.
        kind: what its attributes are.
        inner: what leads to the set from what Nix is asked for.
        is_wanted: whether one that cannot be evaluated is a failure.
        pattern: of paths within it, instead of those that the user gave; None for those.
        name_for_build: gives what names a path of attributes to ``nix build``, where that has a use.
    """

    asked: Installable
    path: expression.Path
    kind: OutputKind
    inner: expression.Path = ()
    is_wanted: bool = True
    pattern: str | None = None
    name_for_build: NameForBuild | None = None

    @property
    def is_deep(self) -> bool:
        """Whether each set in it is one of further outputs."""
        return self.path[:1] == (JOBS,)

    def attr(self, within: expression.Path) -> str:
        """Write the path of one attribute."""
        return expression.write_path((*self.path, *within))

    def steps(self, within: expression.Path) -> expression.Path:
        """Tell what leads to a derivation from what Nix is asked for."""
        return (*self.inner, *within, *self.kind.rest)

    def installable(self, within: expression.Path) -> Installable | None:
        """Name the derivation to ``nix build``."""
        return self.name_for_build((*self.path, *within, *self.kind.rest)) if self.name_for_build else None

    def may_hold(self, within: expression.Path) -> bool:
        """Tell whether an attribute is one that the pattern means, or may have such in it."""
        if self.pattern is None:
            return True
        letters = min((self.pattern.find(one) for one in _WILDCARDS if one in self.pattern), default=None)
        start, text = self.pattern[:letters], f"{expression.write_path(within)}."
        return text.startswith(start) or start.startswith(text)

    def is_meant(self, within: expression.Path) -> bool:
        """Tell whether the pattern means an attribute."""
        return self.pattern is None or fnmatchcase(expression.write_path(within), self.pattern)

    def find_matching(self, name: str, patterns: Iterable[str]) -> Iterator[str]:
        """Find the user's patterns that mean this name: in full, without the system, or by itself."""
        spellings = (self.attr((name,)), f"{self.kind.name}.{expression.write_attribute(name)}", name)
        for pattern in patterns:
            if pattern in spellings or any(fnmatchcase(spelling, pattern) for spelling in spellings):
                yield pattern


def is_pattern(attr: str) -> bool:
    """Tell whether an argument may mean several attributes."""
    return any(letter in attr for letter in _WILDCARDS)


def find_candidates(path: expression.Path, systems: Iterable[str]) -> Iterator[expression.Path]:
    """Tell where in a flake a path of attributes may lead, in the order in which ``nix build`` looks.

    Beyond that, the system may be left away behind the names that need one.
    """
    systems = list(systems)
    yield from ((kind, system, *path) for system in systems for kind in ("packages", LEGACY_PACKAGES))
    if path[0] in BY_SYSTEM:
        yield from ((path[0], system, *path[1:]) for system in systems)
    yield path
