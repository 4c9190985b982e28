"""Outputs: what a flake or a Nix file has to build, and where in it they stand. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from nixcache_oci.clients.local_store import expression
from nixcache_oci.nix.store_path import StorePath

MANY: Final = 500
"""How many small derivations one process evaluates; their names have to fit into one argument."""


@dataclass(frozen=True, slots=True)
class Output:
    """A derivation to build.

    Attributes:
        attr: names it, and the root that it becomes: ``packages.x86_64-linux.hello``,
            ``nixosConfigurations.web``, or a path of attributes in a file.
        drv_path: of the derivation, which is in the store.
        system: what it is built on, such as ``x86_64-linux``; another one than this machine's needs a remote
            builder.
        installable: names it to ``nix build``, so that the settings of its flake are read; None where it
            cannot be named.
    """

    attr: str
    drv_path: StorePath
    system: str | None
    installable: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluationFailure:
    """What could not be evaluated.

    Attributes:
        attr: an output, or a whole set of them.
        message: one line; Nix's own words were shown.
        is_set: whether it is a set, so that nobody can tell which outputs there would be.
    """

    attr: str
    message: str
    is_set: bool = False


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What there is to build, and what there would be."""

    outputs: tuple[Output, ...]
    failures: tuple[EvaluationFailure, ...]


@dataclass(frozen=True, slots=True)
class OutputKind:
    """A set of outputs that flakes have by convention.

    Attributes:
        name: of the attribute.
        rest: what leads from one of its attributes to the derivation.
        is_by_system: whether a set for each system lies between.
        at_once: how many are evaluated by one process. A whole system takes gigabytes and many seconds: one.
    """

    name: str
    rest: str = ""
    is_by_system: bool = False
    at_once: int = 1


CHECKS: Final = OutputKind("checks", is_by_system=True, at_once=MANY)
KINDS: Final = (
    OutputKind("packages", is_by_system=True, at_once=MANY),
    OutputKind("devShells", is_by_system=True, at_once=MANY),
    CHECKS,
    OutputKind("nixosConfigurations", rest="config.system.build.toplevel"),
    OutputKind("homeConfigurations", rest="activationPackage"),
    OutputKind("darwinConfigurations", rest="system"),
)


@dataclass(frozen=True, slots=True)
class OutputSet:
    """A set of attributes that Nix can be asked about.

    Attributes:
        label: its path of attributes; empty for a file.
        arguments: name it to ``nix eval``.
        kind: what its attributes are.
        prefix: what stands before the path of an attribute to build it; None where that is not needed.
    """

    label: str
    arguments: tuple[str, ...]
    kind: OutputKind
    prefix: str | None = None

    def attr(self, name: str) -> str:
        """Write the path of one attribute."""
        written = expression.write_attribute(name)
        return f"{self.label}.{written}" if self.label else written

    def find_matching(self, name: str, patterns: tuple[str, ...]) -> Iterator[str]:
        """Find the patterns that mean this attribute: in full, without the system, or by its name alone."""
        spellings = (self.attr(name), f"{self.kind.name}.{expression.write_attribute(name)}", name)
        for pattern in patterns:
            if pattern in spellings or any(fnmatchcase(spelling, pattern) for spelling in spellings):
                yield pattern

    def make_output(self, name: str, drv_path: StorePath, system: str | None) -> Output:
        """Put together what is known of one attribute."""
        attr = self.attr(name)
        # Escapes mean nothing on Nix's command line.
        has_installable = self.prefix is not None and "\\" not in attr
        rest = f".{self.kind.rest}" if self.kind.rest else ""
        return Output(attr, drv_path, system, f"{self.prefix}{attr}{rest}" if has_installable else None)
