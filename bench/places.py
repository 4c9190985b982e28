"""Places for a real Nix to get closures from: at a distance, through a proxy or from a plain cache.

NIX_PROGRAMS names folders with the programs of further Nix versions, separated by colons. Nix's stores lie in
TMPDIR: on a disk that others use, they take longer by more than what is measured.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.closures import Closures, large_sizes
from bench.distance import Distance
from bench.figures import Series
from bench.naive_proxy import naive_proxy
from bench.nginx import nginx
from bench.remote import registry_at
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine
from tests.support.registries import Ghcr, ghcr_double

# A client takes a quarter off so short a lifetime; what is left is longer than any of these closures takes.
_TOKEN_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True)
class Client:
    """One version of Nix."""

    nix: NixSandbox
    version: str

    @property
    def loads_at_once(self) -> bool:
        """Whether it downloads several NARs at once: since 2.16."""
        major, minor = (int(part) for part in self.version.split(".")[:2])
        return (major, minor) >= (2, 16)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all contenders.

    Attributes:
        folder: for proxies.
        clients: versions of Nix.
        public_key: of the cache.
        registry: holds the cache.
        cache: the same closure as a plain binary cache.
        plain_url: of nginx with that.
        closures: what to realise.
        large_sizes: of the large NARs, compressed, in bytes.
    """

    folder: Path
    clients: Sequence[Client]
    public_key: str
    registry: Ghcr
    cache: Path
    plain_url: str
    closures: Closures
    large_sizes: Sequence[int]

    @contextmanager
    def at(self, distance: Distance) -> Iterator["Place"]:
        """Put the servers at a distance."""
        plain = self.plain_url.removeprefix("http://")
        with (
            registry_at(distance, self.registry, plain) as (host, plain_host),
            naive_proxy(self.registry, host, self.cache) as naive_url,
        ):
            yield Place(self, distance, host, f"http://{plain_host}", naive_url)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the contenders are."""

    setting: Setting
    distance: Distance
    registry_host: str
    plain_url: str
    naive_url: str

    def series(self, what: str, nix: Client) -> Series:
        """Name what is measured here."""
        return Series(f"{what}, Nix {nix.version}", "s", at=self.distance.milliseconds, axis="ms round trip")

    def time(self, nix: Client, url: str, path: str) -> float:
        """Realise a path from a cache into an empty store; gives seconds."""
        begun = time.monotonic()
        result = nix.nix.realise([path], substituters=[url], trusted_keys=[self.setting.public_key])
        seconds = time.monotonic() - begun
        result.check()
        remove_store(result.store)
        return seconds

    def time_ours(self, nix: Client, path: str, state: Literal["new", "idle", "in use"] = "idle") -> float:
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
                self.time(nix, proxy.url, self.setting.closures.other)
            if state == "idle":
                time.sleep(_TOKEN_SECONDS)
            return self.time(nix, proxy.url, path)


@contextmanager
def prepare(folder: Path, small_count: int) -> Iterator[Setting]:
    """Build the closures, and put them into the registry and into a plain cache."""
    nix = NixSandbox(folder / "nix")
    closures = Closures.build(nix, folder, small_count)
    secret, public_key = nix.generate_key("bench-1")
    cache = folder / "cache"
    nix.copy_to(f"file://{cache}?compression=zstd&secret-key={secret}", closures.roots).check()
    with ExitStack() as stack:
        registry = stack.enter_context(ghcr_double())
        settings = settings_of(registry, folder)
        machine = Machine(folder / "machine", nix, {**settings, "NIXCACHE_SIGNING_KEY_FILE": str(secret)})
        for roots in ((closures.other,), (closures.small, closures.whole), (closures.layered,)):
            machine.run("push", *roots).check()
        plain = stack.enter_context(nginx(folder / "nginx", f"root {cache};"))
        clients = list(find_clients(folder))
        yield Setting(
            folder, clients, public_key, registry, cache, f"http://{plain}", closures, large_sizes(cache)
        )


@contextmanager
def _tokens_of(registry: Ghcr, state: str) -> Iterator[None]:
    server, seconds = registry.server, registry.server.token_seconds
    if state == "idle":
        server.token_seconds, server.tells_token_seconds = _TOKEN_SECONDS, True
    try:
        yield
    finally:
        server.token_seconds, server.tells_token_seconds = seconds, False


def find_clients(folder: Path, *, one_store: bool = False) -> Iterator[Client]:
    """Give the installed Nix, and further versions, each with stores of its own unless told."""
    others = [Path(place) for place in os.environ.get("NIX_PROGRAMS", "").split(os.pathsep) if place]
    for number, programs in enumerate([None, *others]):
        nix = NixSandbox(folder if one_store else folder / f"client-{number}", programs=programs)
        version = nix.run("nix", "--version").check().stdout.split()[-1]
        yield Client(nix, version)


def remove_store(store: Path) -> None:
    """Remove a store that something was realised into."""
    subprocess.run(["chmod", "-R", "u+w", str(store)], check=True)
    shutil.rmtree(store)
