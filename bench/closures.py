"""Closures of made-up store paths, as real Nix builds them."""

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.support.nix import NixSandbox

_SMALL_BYTES: Final = 20_000
_LARGE_PATHS: Final = 5
_LARGE_BYTES: Final = 38_000_000
_LAYERS: Final = 8
_LAYERED_BYTES: Final = 120_000
_REFERENCES: Final = 3


@dataclass(frozen=True, slots=True)
class Closures:
    """Store paths to realise.

    Attributes:
        small: refers to all small paths.
        whole: refers to the large ones too.
        layered: refers to a layer of paths, each of which refers to a few of the next layer, and so on.
        other: refers to nothing, and nothing to it.
        small_count: paths below ``small``.
        layered_count: paths in all layers.
    """

    small: str
    whole: str
    layered: str
    other: str
    small_count: int
    layered_count: int

    @classmethod
    def build(cls, nix: NixSandbox, folder: Path, small_count: int) -> Self:
        """Build them; takes a minute for 500 small paths."""
        chance = random.Random(1)
        small = add_files(nix, folder, [_compressible(chance, _SMALL_BYTES) for _ in range(small_count)])
        large = add_files(nix, folder, [chance.randbytes(_LARGE_BYTES) for _ in range(_LARGE_PATHS)])
        layered_count = _LAYERS * (small_count * 3 // 10)
        return cls(
            build_root(nix, "small", small),
            build_root(nix, "whole", [*small, *large]),
            build_layers(nix, folder, layered_count, chance, layers=_LAYERS, size=_LAYERED_BYTES),
            build_root(nix, "other", []),
            small_count,
            layered_count,
        )

    @property
    def roots(self) -> tuple[str, ...]:
        """All that the others do not refer to."""
        return self.small, self.whole, self.layered


def large_sizes(cache: Path) -> list[int]:
    """Tell how many bytes the large NARs have in a plain cache, compressed."""
    return sorted(path.stat().st_size for path in (cache / "nar").iterdir())[-_LARGE_PATHS:]


def _compressible(chance: random.Random, size: int) -> bytes:
    """Make bytes that compress to about half."""
    return chance.randbytes(size // 2).hex().encode()


def add_files(nix: NixSandbox, folder: Path, contents: Sequence[bytes]) -> list[str]:
    """Make store paths that refer to nothing: where each refers to another, no Nix loads them at once."""
    files = folder / "files"
    files.mkdir()
    names = [f"file-{number}" for number in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (files / name).write_bytes(content)
    added = nix.run("nix-store", "--add", *(str(files / name) for name in names)).check().stdout.split()
    shutil.rmtree(files)
    return added


def build_root(nix: NixSandbox, name: str, paths: Sequence[str]) -> str:
    """Build a path that refers to others."""
    inputs = " ".join(f'(builtins.storePath "{path}")' for path in paths)
    built = nix.build_expression(f"""derivation {{
      name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; inputs = [ {inputs} ];
      args = [ "-c" "echo $inputs > $out" ];
    }}""")
    return built.check().stdout.strip()


def build_layers(
    nix: NixSandbox, folder: Path, count: int, chance: random.Random, *, layers: int, size: int
) -> str:
    """Build paths with names in no order, as real ones have: Nix asks for what is ready in that of names."""
    width = count // layers
    sources = add_files(nix, folder, [_compressible(chance, size) for _ in range(count)])
    lines = []
    for number, source in enumerate(sources):
        below = number // width * width - width
        inputs = [f"p{below + chance.randrange(width)}" for _ in range(_REFERENCES)] if below >= 0 else []
        name = "".join(chance.choices("abcdefghij", k=6))
        lines.append(
            f'p{number} = make "{name}-{number}" (builtins.storePath "{source}") [ {" ".join(inputs)} ];'
        )
    top = " ".join(f"p{number}" for number in range(count - width, count))
    expression = folder / "layers.nix"
    expression.write_text(f"""
      let
        make = name: source: inputs: derivation {{
          inherit name source inputs;
          system = builtins.currentSystem;
          builder = "/bin/sh";
          args = [ "-c" "/bin/cat $source > $out; echo $inputs >> $out" ];
        }};
        {" ".join(lines)}
      in make "layered" (builtins.storePath "{sources[0]}") [ {top} ]
    """)
    return nix.build_expression(f"import {expression}").check().stdout.strip()
