"""The real program as a publisher: processes of their own, on a Nix store that the test filled."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import zstandard

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import StorePath
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess

_MOST_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    def check(self) -> "Ran":
        """Make sure that it succeeded."""
        if self.status:
            raise RuntimeError(f"ended with {self.status}: {self.stderr[-3000:]}")
        return self


class Machine:
    """A machine that publishes: a folder of its own, Nix, and what it is told about the cache.

    Args:
        folder: for its home, its index and its log.
        nix: its store.
        settings: environment variables.
    """

    def __init__(self, folder: Path, nix: NixSandbox, settings: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environment = {
            **nix.environment(),
            "NIXCACHE_INDEX_DIR": str(folder / "index"),
            "NIXCACHE_UPSTREAM": "",
            "TMPDIR": str(folder),
            # What measures the coverage of this process measures that one's, too.
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE")},
            **settings,
        }

    def run(self, *arguments: str, input_text: str = "", **environment: str) -> Ran:
        """Run a command to its end."""
        result = subprocess.run(
            self._command(arguments),
            env={**self.environment, **environment},
            cwd=self.folder,
            input=input_text,
            capture_output=True,
            text=True,
            timeout=_MOST_SECONDS,
            check=False,
        )
        return Ran(result.returncode, result.stdout, result.stderr)

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a command; the caller waits for its end, or ends it."""
        return subprocess.Popen(
            self._command(arguments),
            env={**self.environment, **environment},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "nixcache_oci", *arguments]


_AT_ONCE = 8


def assert_substitutable(proxy: ProxyProcess, paths: Iterable[str]) -> None:
    """Fetch narinfo and NAR of every path, and hold it to its NarHash."""

    def check(text: str) -> None:
        path = StorePath.parse(text)
        answer = proxy.ask(f"/{path.hash_part}.narinfo")
        assert answer.status == 200, f"{path} is not listed"
        narinfo = NarInfo.parse(answer.body)
        body = proxy.ask(f"/{narinfo.url}").body
        if narinfo.compression == "zstd":
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        assert NixHash(hashlib.sha256(body).digest()) == narinfo.nar_hash, f"{path} has other bytes"

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(check, paths))
