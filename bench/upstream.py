"""A plain binary cache far away, asked by Nix itself, and through a proxy as its upstream."""

import json
import random
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.closures import add_files, build_layers, build_root
from bench.distance import Distance, at_distance
from bench.figures import Series, Target
from bench.nginx import nginx
from bench.places import Client, find_clients, remove_store
from bench.scenario import OURS, Bench, Measurement
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.tls import make_authority

TITLE = "real Nix realises a closure of an upstream into an empty store, over a distance"

_AGAIN: Final = f"{OURS}, again"
_ITSELF: Final = "Nix itself"
_FLOOR: Final = "no distance"
_DISTANCES: Final = (Distance(0.040), Distance(0.100))
_LAYERS: Final = 10
_SMALL_BYTES: Final = 20_000
_LARGE_PATHS: Final = 10
_LARGE_BYTES: Final = 20_000_000
# At 40 ms, of the time that Nix itself takes; newer ones ask for sixteen NARs at once.
_MOST_OF_ITSELF: Final = {False: 0.15, True: 0.75}
_LEAST_OF_DIRECT: Final = 0.8
_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class _Setting:
    """A plain binary cache, and what is in it.

    Attributes:
        folder: for proxies.
        clients: versions of Nix.
        public_key: of the cache.
        url: of nginx with it.
        tls_url: of another one, over TLS.
        authority: its certificate's.
        small: refers to layers of small paths.
        mixed: refers to the same, and to large ones.
        large: one of these.
    """

    folder: Path
    clients: Sequence[Client]
    public_key: str
    url: str
    tls_url: str
    authority: Path
    small: str
    mixed: str
    large: str

    @contextmanager
    def proxy(self, upstream: str) -> Iterator[ProxyProcess]:
        """Run a proxy that has nothing, with this upstream."""
        folder = self.folder / "proxy"
        shutil.rmtree(folder, ignore_errors=True)
        settings = {"NIXCACHE_REGISTRY": f"oci:{self.folder}/none", "NIXCACHE_UPSTREAM": upstream}
        settings["NIX_SSL_CERT_FILE"] = str(self.authority)
        with ProxyProcess(folder, **settings) as proxy:
            yield proxy

    def time(self, nix: Client, url: str, path: str) -> float:
        """Realise a path from a cache into an empty store; gives seconds."""
        environment = nix.nix.environment(substituters=[url], trusted_keys=[self.public_key])
        environment["NIX_SSL_CERT_FILE"] = str(self.authority)
        begun = time.monotonic()
        result = nix.nix.run(
            "nix-store", "--realise", path, store=nix.nix.new_store(), environment=environment
        )
        seconds = time.monotonic() - begun
        result.check()
        remove_store(result.store)
        return seconds


def run(bench: Bench) -> None:
    """Measure small paths, and a mixture, at each distance."""
    count = 60 if bench.is_quick else 300
    with tempfile.TemporaryDirectory() as name, _prepare(Path(name), count) as setting:
        bench.note("Nix", ", ".join(nix.version for nix in setting.clients))
        small = f"{count} small paths"
        for distance in _DISTANCES:
            with _far(distance, setting.url) as url:
                for nix in setting.clients:
                    _compare(bench, setting, distance, url, nix, small, setting.small)
                    _compare(bench, setting, distance, url, nix, "the same and 10 of 20 MB", setting.mixed)
                _compare_large(bench, setting, distance, url)
        distance = replace(_DISTANCES[0], handshakes=1)
        with _far(distance, setting.tls_url) as url:
            for nix in setting.clients:
                _compare(bench, setting, distance, url, nix, f"{small} over TLS", setting.small)


@contextmanager
def _far(distance: Distance, url: str) -> Iterator[str]:
    scheme, separator, host = url.partition("://")
    with at_distance(distance, host) as (far,):
        yield scheme + separator + far


def _compare(
    bench: Bench, setting: _Setting, distance: Distance, url: str, nix: Client, what: str, path: str
) -> None:
    series = Series(f"{what}, Nix {nix.version}", "s", at=distance.milliseconds, axis="ms round trip")

    def ours() -> Measurement:
        with setting.proxy(url) as proxy:
            cold = setting.time(nix, proxy.url, path)
            bench.figures.record(series, _AGAIN, setting.time(nix, proxy.url, path))
            bench.note(f"counters after {series}", json.dumps(proxy.status()["counters"]))
        return {series: cold}

    bench.compare(
        {
            OURS: ours,
            _ITSELF: lambda: {series: setting.time(nix, url, path)},
            _FLOOR: lambda: {series: setting.time(nix, setting.url, path)},
        }
    )
    is_judged = distance.round_trip == _DISTANCES[0].round_trip and path == setting.small
    bench.expect(
        Target(series, OURS, _MOST_OF_ITSELF[nix.loads_at_once] if is_judged else 1.0, beside=_ITSELF)
    )


def _compare_large(bench: Bench, setting: _Setting, distance: Distance, upstream: str) -> None:
    """Download one large NAR while the small ones are fetched ahead."""
    series = Series(
        "one NAR of 20 MB", "MB/s", better="higher", at=distance.milliseconds, axis="ms round trip"
    )
    url = _nar_url(upstream, setting.large)
    narinfos = [path.name for path in (setting.folder / "cache").glob("*.narinfo")]

    def ours() -> Measurement:
        with setting.proxy(upstream) as proxy, ThreadPoolExecutor(_AT_ONCE) as pool:
            # As a client does that is about to substitute all of them.
            list(pool.map(_read, [f"{proxy.url}/{name}" for name in narinfos]))
            return {series: _download(_nar_url(proxy.url, setting.large))}

    bench.compare({OURS: ours, "direct": lambda: {series: _download(url)}})
    bench.expect(Target(series, OURS, _LEAST_OF_DIRECT, beside="direct"))


def _nar_url(cache: str, path: str) -> str:
    hash_part = Path(path).name.partition("-")[0]
    lines = _read(f"{cache}/{hash_part}.narinfo").decode().splitlines()
    return next(f"{cache}/{line.removeprefix('URL: ')}" for line in lines if line.startswith("URL: "))


def _download(url: str) -> float:
    begun = time.monotonic()
    return len(_read(url)) / 1e6 / (time.monotonic() - begun)


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        content: bytes = answer.read()
        return content


@contextmanager
def _prepare(folder: Path, count: int) -> Iterator[_Setting]:
    nix = NixSandbox(folder / "nix")
    chance = random.Random(1)
    small = build_layers(nix, folder, count, chance, layers=_LAYERS, size=_SMALL_BYTES)
    large = add_files(nix, folder, [chance.randbytes(_LARGE_BYTES) for _ in range(_LARGE_PATHS)])
    mixed = build_root(nix, "mixed", [small, *large])
    secret, public_key = nix.generate_key("bench-1")
    cache = folder / "cache"
    nix.copy_to(f"file://{cache}?compression=zstd&secret-key={secret}", [mixed]).check()
    authority = make_authority(folder)
    with (
        nginx(folder / "nginx", f"root {cache};") as host,
        nginx(folder / "nginx-tls", f"root {cache};", chain=authority.chain) as tls_host,
    ):
        places = f"http://{host}", f"https://{tls_host}", authority.file
        yield _Setting(folder, list(find_clients(folder)), public_key, *places, small, mixed, large[0])
