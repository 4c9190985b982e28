"""Publishing closures, beside what a user would do instead: ``nix copy`` to a folder, and a shell loop.

The loop is ``nix-store --dump | xz -1`` and one upload for each path; it takes a part of the small paths
only, which are all alike.
"""

import re
import resource
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

from bench.distance import Distance
from bench.figures import Series, Target
from bench.remote import registry_at
from bench.scenario import OURS, Bench, Measurement
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.docker_registry import DockerRegistry
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine
from tests.support.registries import Ghcr, ghcr_double

TITLE = "publishing many small paths, and a few large ones"

_SMALL_BYTES = 20_000
_LARGE_PATHS = 5
_LOOP_PART = 10  # one path of so many
_REAL_FILES = ("/usr/lib", "/usr/bin", "/usr/share")
REQUEST = re.compile(r"http\.request\.method=(\w+)")
_DISTANCE = Distance(0.040)
_COPY = "nix copy to a folder"
_LOOP = "shell loop"
_FAR = f"{OURS}, double of GHCR at 40 ms"
_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class _Load:
    """What is published.

    Attributes:
        paths: of the store.
        amount: how much that is, in ``unit``.
    """

    name: str
    paths: Sequence[str]
    amount: float
    unit: str

    @property
    def speed(self) -> Series:
        """How fast it is published."""
        return Series(self.name, f"{self.unit}/s", better="higher")

    def part(self, one_of: int) -> "_Load":
        """Take one path of so many."""
        return replace(self, paths=self.paths[::one_of], amount=self.amount / one_of)

    def measure(self, job: Callable[[], None], requests: Callable[[], int] | None = None) -> Measurement:
        """Do a job, and see what it took.

        Args:
            job: publishes this.
            requests: tells how many requests a registry has seen so far.
        """
        seen = requests() if requests else 0
        processor = _processor_seconds()
        begun = time.monotonic()
        job()
        seconds = time.monotonic() - begun
        values: dict[Series, float] = {
            self.speed: self.amount / seconds,
            Series(f"{self.name}, processor time for {self.unit}", f"ms/{self.unit}"): 1000
            * (_processor_seconds() - processor)
            / self.amount,
        }
        if requests:
            values[Series(f"{self.name}, requests", "requests")] = requests() - seen
        return values


def run(bench: Bench) -> None:
    """Measure the small paths, then the large ones, at a local registry and at the distant double."""
    small_count, large_bytes = (200, 100 * _MB) if bench.is_quick else (1000, 1000 * _MB)
    bench.note("large paths", f"{_LARGE_PATHS}, of {large_bytes // _MB} MB together")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        nix = NixSandbox(Path(name) / "nix")
        paths = nix.build_paths(small_count, size=_SMALL_BYTES)
        small = _Load(f"{small_count} small paths", paths, small_count, "paths")
        large = _Load("large paths", _build_large(nix, Path(name), large_bytes), large_bytes / _MB, "MB")
        local = stack.enter_context(DockerRegistry(auth=False))
        ghcr = stack.enter_context(ghcr_double())
        (host,) = stack.enter_context(registry_at(_DISTANCE, ghcr))
        machines = _Machines(Path(name), nix)
        to_local = partial(machines.push_to_local, local)
        to_far = partial(machines.push_to_double, ghcr, host)
        bench.compare(
            {
                OURS: lambda: to_local(small),
                _FAR: lambda: to_far(small),
                _COPY: lambda: machines.copy(small),
                _LOOP: lambda: machines.loop(local, small.part(_LOOP_PART)),
            }
        )
        bench.compare({OURS: lambda: to_local(large), _COPY: lambda: machines.copy(large)})
        bench.compare({_FAR: lambda: to_far(large)}, rounds=1)
    bench.expect(Target(small.speed, OURS, 20, beside=_LOOP))
    bench.expect(Target(large.speed, OURS, 1, beside=_COPY))
    bench.expect(Target(small.speed, _FAR, 1 / 1.3, beside=OURS))


class _Machines:
    """Publishers; each publish is the first one to a repository of its own."""

    def __init__(self, folder: Path, nix: NixSandbox) -> None:
        self._folder = folder
        self._nix = nix
        self._key = SecretKey.generate("bench-1").render()
        self._numbers = count()

    def push_to_local(self, registry: DockerRegistry, load: _Load) -> Measurement:
        """Push to docker-registry."""
        settings = {"NIXCACHE_REGISTRY": registry.host, "NIXCACHE_REPO": "o/bench"}
        return load.measure(partial(self._push, settings, load), lambda: len(REQUEST.findall(registry.log)))

    def push_to_double(self, registry: Ghcr, host: str, load: _Load) -> Measurement:
        """Push to the double, which is asked at another place."""
        settings = settings_of(registry, self._folder) | {"NIXCACHE_REGISTRY": host}
        return load.measure(partial(self._push, settings, load), lambda: len(registry.server.requests))

    def copy(self, load: _Load) -> Measurement:
        """Copy to a folder by Nix."""
        folder = self._folder / f"copy-{next(self._numbers)}"
        url = f"file://{folder}?compression=zstd"
        taken = load.measure(lambda: _check(self._nix.copy_to(url, load.paths).returncode))
        shutil.rmtree(folder)
        return taken

    def loop(self, registry: DockerRegistry, load: _Load) -> Measurement:
        """Dump and compress each path by programs, and upload it, one after another."""
        name = f"loop-{next(self._numbers)}"

        def upload_each() -> None:
            for path in load.paths:
                _upload_alone(self._nix, registry.host, path, name)

        return load.measure(upload_each)

    def _push(self, settings: dict[str, str], load: _Load) -> None:
        name = f"push-{next(self._numbers)}"
        machine = Machine(self._folder / name, self._nix, {**settings, "NIX_SIGNING_KEY": self._key})
        machine.run("push", *load.paths, "--image", name).check()


def _processor_seconds() -> float:
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"Nix ended with {status}")


def _build_large(nix: NixSandbox, folder: Path, size: int) -> list[str]:
    """Make store paths of so many bytes together, out of the programs and libraries of this machine."""
    files = (
        each
        for top in _REAL_FILES
        for each in sorted(Path(top).rglob("*"))
        if each.is_file() and not each.is_symlink()
    )
    paths = []
    for number in range(_LARGE_PATHS):
        path = folder / f"large-{number}"
        with path.open("wb") as large:
            while (left := size // _LARGE_PATHS - large.tell()) > 0:
                file = next(files, None)
                if file is None:
                    raise RuntimeError(f"{' '.join(_REAL_FILES)} hold too few bytes")
                large.write(file.read_bytes()[:left])
        paths.append(nix.add_path(path))
        path.unlink()
    return paths


def _upload_alone(nix: NixSandbox, host: str, path: str, name: str) -> None:
    with subprocess.Popen(
        ["nix-store", "--dump", str(nix.physical(path))], env=nix.environment(), stdout=subprocess.PIPE
    ) as dump:
        content = subprocess.run(["xz", "-1"], stdin=dump.stdout, stdout=subprocess.PIPE, check=True).stdout
    begin = urllib.request.Request(f"http://{host}/v2/o/bench/{name}/blobs/uploads/", method="POST")
    with urllib.request.urlopen(begin) as answer:
        location = answer.headers["Location"]
    url = location if "://" in location else f"http://{host}{location}"
    joint = "&" if "?" in url else "?"
    put = urllib.request.Request(
        f"{url}{joint}digest={Digest.of(content)}",
        data=content,
        method="PUT",
        headers={"Content-Type": "application/octet-stream"},
    )
    with urllib.request.urlopen(put):
        pass
