"""A Nix of a test's own, as the local store runs it, and what it said."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from nixcache_oci.clients.local_store.evaluate import evaluate_flake
from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.nix_settings import Systems
from nixcache_oci.clients.local_store.output import Evaluation, NotBuilt
from tests.support.nix import NixSandbox
from tests.support.programs import require_program

SYSTEM = "x86_64-linux"
SYSTEMS = Systems((SYSTEM,), frozenset({SYSTEM, "i686-linux"}))


class NixStory:
    """A store, empty at first; NIX_PROGRAMS names a folder with another version's programs.

    Args:
        folder: for all of it.
        is_chroot: whether its paths begin with /nix/store, and lie elsewhere.
    """

    def __init__(self, folder: Path, *, is_chroot: bool = False) -> None:
        self.folder = folder
        self.programs = os.environ.get("NIX_PROGRAMS")
        self.sandbox = NixSandbox(
            folder / "nix",
            store_dir=None if is_chroot else folder / "store",
            programs=Path(self.programs) if self.programs else None,
        )
        self.lines: list[str] = []

    def environment(self) -> dict[str, str]:
        # Copied programs do not find their own hook for remote builders; 2.8 needs it.
        environment = self.sandbox.environment(options={"build-hook": ""} if self.programs else {})
        if self.programs:
            environment["PATH"] = f"{self.programs}:{environment['PATH']}"
        return environment

    def nix(self, options: Sequence[tuple[str, str]] = (), **changes: str) -> Nix:
        """Give the programs, with variables changed; what they say goes to ``lines``."""
        return Nix({**self.environment(), **changes}, self.lines.append, options)

    def old_nix(self) -> Nix:
        """Give Nix as it was before it had today's commands."""
        folder = self.folder / "old-programs"
        folder.mkdir(exist_ok=True)
        for name in ("nix-store", "nix-instantiate"):
            link = folder / name
            if not link.is_symlink():
                link.symlink_to(require_program(name))
        return self.nix(PATH=str(folder))

    def write(self, name: str, text: str) -> Path:
        """Write a file, and give its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path.parent

    def write_flake(self, outputs: str, settings: str = "") -> str:
        """Write a flake, and give its reference; ``mk`` and ``mkFrom`` make derivations in it."""
        folder = self.write(
            "flake/flake.nix",
            f"""{{
              {settings}
              outputs = {{ self }}: let
                mkFrom = name: script: derivation {{
                  inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
                  args = [ "-euc" script ];
                }};
                mk = name: mkFrom name "echo ${{name}} > $out";
              in {{ {outputs} }};
            }}""",
        )
        return f"path:{folder}"


async def evaluate(
    story: NixStory, outputs: str, attrs: Sequence[str] = (), systems: Systems = SYSTEMS
) -> Evaluation:
    return await evaluate_flake(story.nix(), story.write_flake(outputs), systems, attrs=attrs)


def attrs_of(evaluation: Evaluation) -> list[str]:
    return [output.attr for output in evaluation.outputs]


def reasons_of(outputs: Iterable[NotBuilt]) -> dict[str, str]:
    return {one.attr: one.reason for one in outputs}
