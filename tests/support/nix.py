"""Real Nix, shut off from the machine's own store, settings and caches; without a daemon, as root or not.

Stores are chroot stores: their StoreDir is /nix/store, and their files lie in a folder of the test, so /nix
need not exist. Everything here blocks: an async test that serves Nix itself uses ``asyncio.to_thread``.
"""

import json
import os
import random
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixcache_oci.oci.digest import Digest
from tests.support.programs import require_program

_MOST_SECONDS = 300
_OUTPUTS = 50  # of one derivation: starting a builder costs more than writing a file
_BUILDERS_PATHS = ("/bin", "/usr", "/lib", "/lib64")


@dataclass(frozen=True, slots=True)
class NixRun:
    """How a Nix program ended.

    Attributes:
        store: the chroot store that it worked on.
    """

    returncode: int
    stdout: str
    stderr: str
    store: Path

    def check(self) -> "NixRun":
        """Make sure that it succeeded."""
        if self.returncode:
            raise RuntimeError(f"Nix ended with {self.returncode}: {self.stderr[-3000:]}")
        return self


class NixSandbox:
    """One main store to build in, and any number of empty ones to substitute into.

    Args:
        folder: an empty folder for all of it.
        store_dir: None for a main store whose StoreDir is /nix/store. A folder makes the main store an
            ordinary one there: its paths exist under their own names, and building needs no privileges.
        programs: a folder with Nix programs that are taken instead of the installed ones of the same name.

    Attributes:
        root: of the main store, where that is a chroot store.
    """

    def __init__(self, folder: Path, *, store_dir: Path | None = None, programs: Path | None = None) -> None:
        self._folder = folder
        self._store_dir = store_dir
        self._programs = programs
        self._stores = 0
        self.root = folder / "root"
        for name in ("home/etc", "files"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    @property
    def store_dir(self) -> str:
        """What nix-cache-info has to say."""
        return str(self._store_dir or "/nix/store")

    def environment(
        self,
        *,
        substituters: Iterable[str] = (),
        trusted_keys: Iterable[str] = (),
        require_sigs: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> dict[str, str]:
        """Variables for a program that is, or runs, Nix on the main store; with a fresh cache folder."""
        settings = {
            "experimental-features": "nix-command flakes",
            "substituters": " ".join(substituters),
            "trusted-public-keys": " ".join(trusted_keys),
            "require-sigs": "true" if require_sigs else "false",
            "substitute": "true",  # a machine with only a loopback interface would switch it off
            "sandbox": "false",  # chroot stores build in a sandbox all the same
            "sandbox-paths": " ".join(self._sandbox_paths()),
            "build-users-group": "",
            **(options or {}),
        }
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder / "home"),
            "XDG_CACHE_HOME": tempfile.mkdtemp(prefix="cache-", dir=self._folder / "home"),
            "NIX_CONF_DIR": str(self._folder / "home/etc"),
            "NIX_CONFIG": "\n".join(f"{name} = {value}" for name, value in settings.items()),
        }
        if self._store_dir is None:
            return {**variables, "NIX_REMOTE": f"local?root={self.root}"}
        state = self._folder / "var"
        return {
            **variables,
            "NIX_STORE_DIR": str(self._store_dir),
            "NIX_STATE_DIR": str(state / "nix"),
            "NIX_LOG_DIR": str(state / "log"),
        }

    def new_store(self) -> Path:
        """Name an empty store."""
        self._stores += 1
        return self._folder / f"store-{self._stores}"

    def physical(self, store_path: str, store: Path | None = None) -> Path:
        """Where the files of a store path lie; in the main store if none is given."""
        if store is None and self._store_dir is not None:
            return Path(store_path)
        return (store or self.root) / "nix/store" / Path(store_path).name

    def run(
        self,
        program: str,
        *arguments: str,
        store: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> NixRun:
        """Run a Nix program on a store, the main one if none is given."""
        chosen = ["--store", str(store)] if store else []
        result = subprocess.run(
            [self._find(program), *arguments, *chosen],
            env=dict(environment or self.environment()),
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return NixRun(result.returncode, result.stdout, result.stderr, store or self.root)

    # Filling the main store

    def build_paths(self, count: int, *, size: int = 2000, seed: str = "seed") -> list[str]:
        """Build store paths that are not content-addressed; the same arguments give the same paths.

        Each refers to up to two before it, every seventh to itself; every third is a folder with a program
        and a symbolic link.

        Args:
            count: of paths.
            size: bytes of each one's data, which compress to about half.
            seed: sets contents and names apart.

        Returns:
            The paths, references first; the last one's closure is not all of them.
        """
        generator = random.Random(f"{seed}:{size}")
        paths: list[str] = []
        for start in range(0, count, _OUTPUTS):
            numbers = range(start, min(start + _OUTPUTS, count))
            contents = {number: generator.randbytes(size // 2).hex().encode() for number in numbers}
            paths += self.build_expression(self._expression(seed, contents, paths)).check().stdout.split()
        return paths

    def build_file(self, name: str, content: bytes) -> str:
        """Build one store path that is a file with this content, and not content-addressed."""
        (self._folder / "files" / name).write_bytes(content)
        expression = f"""derivation {{
          name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
          content = "{Digest.of(content)}"; args = [ "-c" "cp {self._files()}/{name} $out" ];
        }}"""
        return self.build_expression(expression).check().stdout.strip()

    def add_path(self, path: Path) -> str:
        """Copy a file or folder into the main store: content-addressed, so that it needs no signature."""
        return self.run("nix-store", "--add", str(path)).check().stdout.strip()

    def build_expression(
        self,
        text: str,
        *,
        substituters: Sequence[str] = (),
        trusted_keys: Sequence[str] = (),
        store: Path | None = None,
        require_sigs: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> NixRun:
        """Build what a Nix expression says, in the main store if none is given; prints the outputs."""
        environment = self.environment(
            substituters=substituters, trusted_keys=trusted_keys, require_sigs=require_sigs, options=options
        )
        return self.run("nix-build", "--no-out-link", "-E", text, store=store, environment=environment)

    # Asking, signing, copying

    def path_info(
        self, paths: Iterable[str], *, recursive: bool = False, store: Path | None = None
    ) -> dict[str, dict[str, Any]]:
        """What ``nix path-info --json`` tells, by store path."""
        options = ["--recursive"] if recursive else []
        found = json.loads(
            self.run("nix", "path-info", "--json", *options, *paths, store=store).check().stdout
        )
        return {info["path"]: info for info in found} if isinstance(found, list) else found

    def dump(self, store_path: str, store: Path | None = None) -> bytes:
        """Serialise a store path as a NAR, as Nix does it."""
        command = [self._find("nix-store"), "--dump", str(self.physical(store_path, store))]
        return subprocess.run(
            command, env=self.environment(), capture_output=True, timeout=_MOST_SECONDS, check=True
        ).stdout

    def generate_key(self, name: str) -> tuple[Path, str]:
        """Make a key pair; returns the secret key's file, and the public key as ``name:base64``."""
        secret, public = self._folder / f"{name}.sec", self._folder / f"{name}.pub"
        self.run("nix-store", "--generate-binary-cache-key", name, str(secret), str(public)).check()
        return secret, public.read_text().strip()

    def sign(self, paths: Iterable[str], secret_key: Path) -> None:
        """Sign paths in the main store, as if they had come from a cache of that key's owner."""
        self.run("nix", "store", "sign", "--key-file", str(secret_key), *paths).check()

    def copy_to(self, url: str, paths: Iterable[str]) -> NixRun:
        """Copy closures from the main store to a binary cache."""
        return self.run("nix", "copy", "--to", url, *paths)

    def realise(
        self,
        paths: Iterable[str],
        *,
        substituters: Sequence[str],
        trusted_keys: Sequence[str] = (),
        store: Path | None = None,
        require_sigs: bool = True,
        options: Mapping[str, str] | None = None,
    ) -> NixRun:
        """Substitute paths into a store, a new and empty one if none is given; ``.store`` tells which."""
        environment = self.environment(
            substituters=substituters, trusted_keys=trusted_keys, require_sigs=require_sigs, options=options
        )
        return self.run(
            "nix-store", "--realise", *paths, store=store or self.new_store(), environment=environment
        )

    # Programs and expressions

    def _find(self, program: str) -> str:
        """Find a program among the given ones, else the installed one."""
        if self._programs and (self._programs / program).exists():
            return str(self._programs / program)
        return require_program(program)

    def _files(self) -> str:
        """Where builders find the files that were put aside for them."""
        return "/files" if self._store_dir is None else str(self._folder / "files")

    def _sandbox_paths(self) -> list[str]:
        there = [path for path in _BUILDERS_PATHS if Path(path).exists()]
        return [*there, f"/files={self._folder / 'files'}"]

    def _expression(self, seed: str, contents: Mapping[int, bytes], earlier: Sequence[str]) -> str:
        """Write one derivation that has an output for each content."""
        lines = []
        for number, content in contents.items():
            name = Digest.of(content).hex
            (self._folder / "files" / name).write_bytes(content)
            target = f"$o{number}"
            if number % 3 == 2:
                lines += [
                    f"mkdir -p {target}/bin",
                    f"echo '#!/bin/sh' > {target}/bin/run",
                    f"chmod 755 {target}/bin/run",
                    f"ln -s bin/run {target}/link",
                ]
                target += "/data"
            references = [number // 2, number - 1] if number else []
            words = [earlier[each] if each < len(earlier) else f"$o{each}" for each in references]
            words += [f"$o{number}"] if number % 7 == 6 else []
            lines += [f"cat {self._files()}/{name} > {target}", f"echo {' '.join(words)} >> {target}"]
        script = "\n".join(lines).replace("''", "'''")
        outputs = " ".join(f'"o{number}"' for number in contents)
        inputs = " ".join(f'(builtins.storePath "{path}")' for path in earlier)
        return f"""let all = derivation {{
          name = "{seed}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
          outputs = [ {outputs} ]; inputs = [ {inputs} ]; args = [ "-euc" ''{script}'' ];
        }}; in map (output: all.${{output}}) all.outputs"""
