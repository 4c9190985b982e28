"""Caches on demand, opened in a row, and the narinfos of a configured cache meanwhile."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

from bench.delays import ask_during
from bench.figures import Series, Target
from bench.scenario import OURS, Bench, Measurement
from nixcache_oci.nix.store_path import HashPart
from tests.support.caches import put_into
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.registries import Ghcr, ghcr_double

_PREFIXES, _QUICK_PREFIXES = 1_000, 100
_REST_SECONDS = 4
_PAUSE_SECONDS = 0.001
_MIB = 1024 * 1024
_ALONE = "no cache opened"

_NARINFO = Series("narinfo while caches are opened, p99", "ms")
_OPENING = Series("first narinfo of a cache on demand, median", "ms")
_OPEN = Series("open caches after 1,000 prefixes", "caches")
_DISK = Series("indexes on disk after 1,000 prefixes", "MiB")


def compare_openings(bench: Bench, folder: Path, cache: str, hash_parts: Sequence[HashPart]) -> None:
    """Measure proxies that know nothing yet but one configured cache, whose narinfos are asked for."""
    prefixes = _QUICK_PREFIXES if bench.is_quick else _PREFIXES
    repos = [f"owner/cache-{number}" for number in range(prefixes)]
    folders = (folder / f"on-demand-{number}" for number in count())
    with ExitStack() as stack:
        registry = stack.enter_context(ghcr_double())
        registry.server.public = frozenset(f"{repo}/nix-cache" for repo in repos)
        for repo in repos:
            put_into(registry, repo, [store_object(_object_of(repo))])

        def measure(job: Callable[[ProxyProcess], Measurement]) -> Measurement:
            settings = {"NIXCACHE_REGISTRY": cache, "NIXCACHE_ON_DEMAND": f"{registry.server.host}/*"}
            with ProxyProcess(next(folders), **settings) as proxy:
                proxy.wait_ready()
                told: dict[Series, float] = {}
                _, during = ask_during(
                    proxy.host, hash_parts, lambda: told.update(job(proxy)), pause_seconds=_PAUSE_SECONDS
                )
                return {_NARINFO: statistics.quantiles(during, n=100)[98] * 1000, **told}

        bench.compare(
            {OURS: partial(measure, partial(_open, registry, repos)), _ALONE: partial(measure, _rest)}
        )
    for series, limit in ((_NARINFO, 5), (_OPEN, 64), (_DISK, 1024)):
        bench.expect(Target(series, OURS, limit))


def _object_of(repo: str) -> str:
    return repo.replace("/", "-")


def _open(registry: Ghcr, repos: Sequence[str], proxy: ProxyProcess) -> Measurement:
    took = []
    for repo in repos:
        begun = time.monotonic()
        path = f"/{registry.server.host}/{repo}/nix-cache/{hash_part_of(_object_of(repo))}.narinfo"
        assert proxy.ask(path, method="HEAD").status == 200
        took.append(time.monotonic() - begun)
    found = proxy.status()["on_demand"]
    return {
        _OPENING: statistics.median(took) * 1000,
        _OPEN: found["open"],
        _DISK: found["disk_bytes"] / _MIB,
    }


def _rest(_: ProxyProcess) -> Measurement:
    time.sleep(_REST_SECONDS)
    return {}
