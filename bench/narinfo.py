"""Narinfos per second over keep-alive, beside nginx that serves the same ones as files; and a miss's delay.

wrk asks for paths at random. Both servers were asked for every path once before, as after a day of use.
"""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import psutil

from bench.figures import Series, Target
from bench.nginx import nginx
from bench.scenario import OURS, Bench, Measurement
from bench.wrk import CONNECTIONS, ask_at_random
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import CREATED

TITLE = "narinfos"

_PATHS, _QUICK_PATHS = 100_000, 2_000
_PATHS_OF_A_PACK = 500
_NAR_BYTES = 1_000
_SECONDS, _QUICK_SECONDS = 5, 1
_MISSES, _QUICK_MISSES = 1_000, 100
_NGINX = "nginx"
_HITS = Series(f"hits, {CONNECTIONS} connections", "1/s", better="higher")
_CPU = Series("CPU time of the server, a hit", "µs")
_MISS = Series("miss that an upstream answers, median", "ms")
_ADDED = Series("added to the upstream's own time", "ms")


def run(bench: Bench) -> None:
    """Measure hits, then misses."""
    count = _QUICK_PATHS if bench.is_quick else _PATHS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "files").mkdir()
        asyncio.run(_fill(folder, count))
        settings = {"NIXCACHE_REGISTRY": f"oci:{folder}/cache"}
        with nginx(folder / "nginx", f"root {folder}/files; default_type text/x-nix-narinfo;") as plain:
            with ProxyProcess(folder / "proxy", **settings) as proxy:
                proxy.wait_ready()
                _compare_hits(bench, folder, proxy.host, plain)
            settings = {"NIXCACHE_REGISTRY": f"oci:{folder}/empty", "NIXCACHE_UPSTREAM": f"http://{plain}"}
            with ProxyProcess(folder / "other-proxy", **settings) as proxy:
                _compare_misses(bench, folder, proxy.host, plain)


def _compare_hits(bench: Bench, folder: Path, ours: str, plain: str) -> None:
    paths = folder / "paths"
    for host in (ours, plain):
        ask_each(host, paths.read_text().split())
    seconds = _QUICK_SECONDS if bench.is_quick else _SECONDS

    def measure(host: str) -> Measurement:
        before = _cpu_seconds(host)
        answers = ask_at_random(host, paths, seconds)
        if answers.errors:
            raise RuntimeError(f"{host}: {answers.errors} of {answers.count} are no hits")
        return {_HITS: answers.per_second, _CPU: (_cpu_seconds(host) - before) / answers.count * 1e6}

    bench.compare({OURS: partial(measure, ours), _NGINX: partial(measure, plain)})
    bench.expect(Target(_HITS, OURS, 1.0, beside=_NGINX))


def _compare_misses(bench: Bench, folder: Path, ours: str, upstream: str) -> None:
    """Every path is asked for once: an upstream's answer may be remembered."""
    count = _QUICK_MISSES if bench.is_quick else _MISSES
    paths = (folder / "paths").read_text().split()
    random.shuffle(paths)
    batches = [paths[start : start + count] for start in range(0, len(paths), count)]

    def measure() -> Measurement:
        batch = batches.pop()
        direct, through = ask_each(upstream, batch), ask_each(ours, batch)
        return {_MISS: through, _ADDED: through - direct}

    bench.compare({OURS: measure})
    bench.expect(Target(_ADDED, OURS, 1.0))


def ask_each(host: str, paths: Sequence[str]) -> float:
    """Ask for one path after the other; gives the median time of an answer in ms."""
    times = []
    connection = HTTPConnection(host)
    for path in paths:
        started = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        times.append(time.perf_counter() - started)
        if answer.status != 200:
            raise RuntimeError(f"{host}{path}: {answer.status}")
    connection.close()
    return statistics.median(times) * 1000


def _cpu_seconds(host: str) -> float:
    """Tell what the process that listens there has used."""
    port = int(host.rpartition(":")[2])
    listening = next(
        each
        for each in psutil.net_connections("tcp4")
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
    )
    times = psutil.Process(listening.pid).cpu_times()
    return times.user + times.system


async def _fill(folder: Path, count: int) -> None:
    """Write a cache in packs, and the same narinfos as files."""
    repository, key = Layout(folder / "cache"), SecretKey.generate("bench-1")
    narinfos: list[NarInfo] = []
    layers: list[Descriptor] = []
    for first in range(0, count, _PATHS_OF_A_PACK):
        content = random.Random(first).randbytes(_PATHS_OF_A_PACK * _NAR_BYTES)
        pack = Descriptor(media_type.PACK, Digest.of(content), len(content))
        await repository.push_blob(pack.digest, content)
        layers.append(pack)
        narinfos += _narinfos_of(pack, first, key)
    header = TableHeader(CREATED, public_keys=(str(key.public_key),))
    segment = await push_segment(repository, Table(header, (), tuple(narinfos)), layers)
    await list_segments(repository, [segment])
    for narinfo in narinfos:
        (folder / "files" / f"{narinfo.store_path.hash_part}.narinfo").write_text(narinfo.render())
    names = (f"/{narinfo.store_path.hash_part}.narinfo\n" for narinfo in narinfos)
    (folder / "paths").write_text("".join(names))


def _narinfos_of(pack: Descriptor, first: int, key: SecretKey) -> Iterator[NarInfo]:
    template = store_object("template").narinfo
    for number in range(_PATHS_OF_A_PACK):
        path = replace(template.store_path, hash_part=_hash_part(first + number))
        narinfo = replace(
            template,
            store_path=path,
            url=f"nar/{pack.digest.hex}/{number * _NAR_BYTES}-{_NAR_BYTES}.nar.zst",
            compression="zstd",
            references=tuple(f"{_hash_part(max(0, first + number - back))}-{path.name}" for back in range(4)),
        )
        yield replace(narinfo, sigs=(key.sign(fingerprint(narinfo)),))


def _hash_part(number: int) -> HashPart:
    return hash_part_of(str(number))
