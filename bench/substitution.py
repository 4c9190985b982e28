"""Substitution over a distance: a real Nix realises a closure into an empty store.

NIX_PROGRAMS names folders with the programs of further Nix versions, parted by colons. Nix's stores lie in
TMPDIR: on a disk that others use, they take longer by more than what is measured.
"""

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.distance import Distance
from bench.figures import Series, Target
from bench.naive_proxy import naive_proxy
from bench.nginx import nginx
from bench.remote import registry_at
from bench.scenario import OURS, Bench, Measurement
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine
from tests.support.registries import Ghcr, ghcr_double

TITLE = "real Nix realises a closure into an empty store, over a distance"

_SMALL_BYTES = 20_000
_LARGE_PATHS = 5
_LARGE_BYTES = 38_000_000
_FLOOR: Final = "no distance"
_FLOOR_AND_TRANSFER: Final = "no distance + transfer"
_PLAIN: Final = "plain cache"
_NAIVE: Final = "naive proxy"
# A client takes a quarter off so short a lifetime; what is left is longer than any of these closures takes.
_TOKEN_SECONDS = 4.0
_NEAR = Distance(0.040)
_FAR = Distance(0.100)


def run(bench: Bench) -> None:
    """Measure the small paths alone, and the whole closure; then from further away, and from nothing."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        setting = stack.enter_context(_prepare(Path(folder), 100 if bench.is_quick else 500))
        bench.note("Nix", ", ".join(nix.version for nix in setting.clients))
        bench.note("small paths", f"{setting.small_count}")
        bench.note("large NARs, compressed bytes", " ".join(map(str, setting.large_sizes)))
        with setting.at(_NEAR) as place:
            for nix in setting.clients:
                _compare_small(bench, place, nix)
                _compare_whole(bench, place, nix)
        with setting.at(_FAR) as place:
            for nix in setting.clients:
                _compare_small(bench, place, nix)


@dataclass(frozen=True, slots=True)
class _Client:
    """One version of Nix."""

    nix: NixSandbox
    version: str

    @property
    def loads_at_once(self) -> bool:
        """Whether it downloads several NARs at once: since 2.16."""
        major, minor = (int(part) for part in self.version.split(".")[:2])
        return (major, minor) >= (2, 16)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What is the same for all contenders.

    Attributes:
        folder: for proxies.
        clients: versions of Nix.
        public_key: of the cache.
        registry: holds the cache.
        cache: the same closure as a plain binary cache.
        plain_url: of nginx with that.
        small: a path that refers to all small ones.
        whole: one that refers to the large ones too.
        other: one that no other refers to.
        small_count: of small paths.
        large_sizes: of the large NARs, compressed, in bytes.
    """

    folder: Path
    clients: Sequence[_Client]
    public_key: str
    registry: Ghcr
    cache: Path
    plain_url: str
    small: str
    whole: str
    other: str
    small_count: int
    large_sizes: Sequence[int]

    @contextmanager
    def at(self, distance: Distance) -> Iterator["_Place"]:
        """Put the servers at a distance."""
        plain = self.plain_url.removeprefix("http://")
        with (
            registry_at(distance, self.registry, plain) as (host, plain_host),
            naive_proxy(self.registry, host, self.cache) as naive_url,
        ):
            yield _Place(self, distance, host, f"http://{plain_host}", naive_url)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the contenders are."""

    setting: _Setting
    distance: Distance
    registry_host: str
    plain_url: str
    naive_url: str

    def series(self, what: str, nix: _Client) -> Series:
        """Name what is measured here."""
        return Series(f"{what}, Nix {nix.version}", "s", at=self.distance.milliseconds, axis="ms round trip")

    def time(self, nix: _Client, url: str, path: str) -> float:
        """Realise a path from a cache into an empty store; gives seconds."""
        begun = time.monotonic()
        result = nix.nix.realise([path], substituters=[url], trusted_keys=[self.setting.public_key])
        seconds = time.monotonic() - begun
        result.check()
        _remove(result.store)
        return seconds

    def time_ours(self, nix: _Client, path: str, state: Literal["new", "idle", "in use"] = "idle") -> float:
        """Realise a path through a proxy that has nothing of it.

        Args:
            nix: realises it.
            path: what.
            state: ``new`` was just started, and has not even an index; ``idle`` was used before for another
                path, and then not for longer than its token lives; ``in use`` was used just before.
        """
        folder = self.setting.folder / "proxy"
        settings = settings_of(self.setting.registry, self.setting.folder)
        settings |= {"NIXCACHE_REGISTRY": self.registry_host}
        if state == "new":
            shutil.rmtree(folder, ignore_errors=True)
        with _tokens_of(self.setting.registry, state), ProxyProcess(folder, **settings) as proxy:
            if state != "new":
                proxy.refresh()
                self.time(nix, proxy.url, self.setting.other)
            if state == "idle":
                time.sleep(_TOKEN_SECONDS)
            return self.time(nix, proxy.url, path)


def _compare_small(bench: Bench, place: _Place, nix: _Client) -> None:
    setting = place.setting
    series = place.series(f"{setting.small_count} small paths", nix)
    in_use = place.series(f"{setting.small_count} small paths, proxy in use", nix)
    first = place.series(f"{setting.small_count} small paths, no index yet", nix)

    def ours() -> Measurement:
        return {
            first: place.time_ours(nix, setting.small, "new"),
            series: place.time_ours(nix, setting.small),
            in_use: place.time_ours(nix, setting.small, "in use"),
        }

    def floor() -> Measurement:
        seconds = place.time(nix, setting.plain_url, setting.small)
        return {series: seconds, in_use: seconds, first: seconds}

    bench.compare({OURS: ours, _FLOOR: floor})
    # What takes these so long is the distance: it hardly varies, and would take most of the whole run.
    bench.compare({_PLAIN: lambda: {series: place.time(nix, place.plain_url, setting.small)}}, rounds=1)
    if place.distance == _NEAR:
        bench.compare({_NAIVE: lambda: {series: place.time(nix, place.naive_url, setting.small)}}, rounds=1)
    for one in (series, in_use, first):
        bench.expect(Target(one, OURS, 1.15, beside=_FLOOR))
    if not nix.loads_at_once:
        bench.expect(Target(series, OURS, 0.1, beside=_PLAIN))


def _compare_whole(bench: Bench, place: _Place, nix: _Client) -> None:
    setting = place.setting
    series = place.series("the same and 5 large ones", nix)
    sizes = setting.large_sizes
    transfer = (max(sizes) if nix.loads_at_once else sum(sizes)) / place.distance.rate

    def ours() -> Measurement:
        return {series: place.time_ours(nix, setting.whole)}

    def floor() -> Measurement:
        seconds = place.time(nix, setting.plain_url, setting.whole)
        bench.figures.record(series, _FLOOR_AND_TRANSFER, seconds + transfer)
        return {series: seconds}

    bench.compare({OURS: ours, _FLOOR: floor})
    bench.compare({_PLAIN: lambda: {series: place.time(nix, place.plain_url, setting.whole)}}, rounds=1)
    bench.expect(Target(series, OURS, 1.15, beside=_FLOOR_AND_TRANSFER))


@contextmanager
def _tokens_of(registry: Ghcr, state: str) -> Iterator[None]:
    server, seconds = registry.server, registry.server.token_seconds
    if state == "idle":
        server.token_seconds, server.tells_token_seconds = _TOKEN_SECONDS, True
    try:
        yield
    finally:
        server.token_seconds, server.tells_token_seconds = seconds, False


@contextmanager
def _prepare(folder: Path, small_count: int) -> Iterator[_Setting]:
    """Build the closure, and put it into the registry and into a plain cache."""
    nix = NixSandbox(folder / "nix")
    generator = random.Random(1)
    small = _add_files(nix, folder, [_compressible(generator, _SMALL_BYTES) for _ in range(small_count)])
    large = _add_files(nix, folder, [generator.randbytes(_LARGE_BYTES) for _ in range(_LARGE_PATHS)])
    roots = _build_root(nix, "small", small), _build_root(nix, "whole", [*small, *large])
    other = _build_root(nix, "other", [])
    secret, public_key = nix.generate_key("bench-1")
    cache = folder / "cache"
    nix.copy_to(f"file://{cache}?compression=zstd&secret-key={secret}", roots).check()
    sizes = sorted(path.stat().st_size for path in (cache / "nar").iterdir())[-_LARGE_PATHS:]
    with ExitStack() as stack:
        registry = stack.enter_context(ghcr_double())
        settings = settings_of(registry, folder)
        machine = Machine(folder / "machine", nix, {**settings, "NIXCACHE_SIGNING_KEY_FILE": str(secret)})
        machine.run("push", other).check()
        machine.run("push", *roots).check()
        plain = stack.enter_context(nginx(folder / "nginx", f"root {cache};"))
        clients = list(_clients(folder))
        yield _Setting(
            folder,
            clients,
            public_key,
            registry,
            cache,
            f"http://{plain}",
            *roots,
            other,
            small_count,
            sizes,
        )


def _compressible(generator: random.Random, size: int) -> bytes:
    """Make bytes that compress to about half."""
    return generator.randbytes(size // 2).hex().encode()


def _add_files(nix: NixSandbox, folder: Path, contents: Sequence[bytes]) -> list[str]:
    """Make store paths that refer to nothing: where each refers to another, no Nix loads them at once."""
    files = folder / f"files-{len(contents)}"
    files.mkdir()
    for number, content in enumerate(contents):
        (files / f"file-{number}").write_bytes(content)
    added = nix.run("nix-store", "--add", *map(str, sorted(files.iterdir()))).check().stdout.split()
    shutil.rmtree(files)
    return added


def _build_root(nix: NixSandbox, name: str, paths: Sequence[str]) -> str:
    inputs = " ".join(f'(builtins.storePath "{path}")' for path in paths)
    built = nix.build_expression(f"""derivation {{
      name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh"; inputs = [ {inputs} ];
      args = [ "-c" "echo $inputs > $out" ];
    }}""")
    return built.check().stdout.strip()


def _clients(folder: Path) -> Iterator[_Client]:
    others = [Path(place) for place in os.environ.get("NIX_PROGRAMS", "").split(os.pathsep) if place]
    for number, programs in enumerate([None, *others]):
        nix = NixSandbox(folder / f"client-{number}", programs=programs)
        version = nix.run("nix", "--version").check().stdout.split()[-1]
        yield _Client(nix, version)


def _remove(store: Path) -> None:
    subprocess.run(["chmod", "-R", "u+w", str(store)], check=True)
    shutil.rmtree(store)
