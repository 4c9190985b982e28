"""Several caches behind one proxy, caches that requests name, and the page beside narinfos."""

import asyncio
import http.client
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from bench.figures import Series, Target
from bench.made_up_tables import list_made_up, made_up_hash_parts, name_of
from bench.openings import compare_openings
from bench.scenario import OURS, Bench, Measurement
from bench.wrk import ask_at_random
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.store_path import HashPart
from tests.support.caches import write_caches
from tests.support.proxy import ProxyProcess

TITLE = "1, 3 and 10 caches of 100,000 paths, the page beside them, and 1,000 caches on demand"

_CACHES = (1, 3, 10)
_PATHS, _QUICK_PATHS = 100_000, 2_000
_SECONDS, _QUICK_SECONDS = 4, 1
_ASKED_FOR = 10_000
_MIB = 1024 * 1024
_BROWSER = {"Accept": "text/html"}
_ALONE = "narinfos alone"

_HIT = Series("a hit in the last cache", "µs")
_ANONYMOUS = [Series("RssAnon", "MiB", at=number, axis="caches") for number in _CACHES]
_BESIDE_PAGES = Series("narinfo beside the page, p99", "ms")
_SEARCH = Series("search beside narinfos, p95", "ms")
_PATH = Series("page of a path beside narinfos, p95", "ms")


def run(bench: Bench) -> None:
    """Measure roots, then the page of one of them, then caches on demand beside another."""
    paths = _QUICK_PATHS if bench.is_quick else _PATHS
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        held = [made_up_hash_parts(paths, seed) for seed in range(_CACHES[-1])]
        for number, hash_parts in enumerate(held):
            asyncio.run(list_made_up(Layout(folder / f"cache{number}"), hash_parts))
        roots = {number: stack.enter_context(_root(folder, number)) for number in _CACHES}
        seconds = _QUICK_SECONDS if bench.is_quick else _SECONDS
        _compare_roots(bench, roots, held, seconds)
        _compare_pages(bench, roots[1], held[0], seconds)
        for root in roots.values():
            root.stop()
        compare_openings(bench, folder, f"oci:{folder}/cache0", held[0])


def _root(folder: Path, number: int) -> ProxyProcess:
    entries = [{"registry": f"oci:{folder}/cache{each}"} for each in range(number)]
    file = write_caches(folder / f"caches{number}.toml", entries)
    return ProxyProcess(folder / f"proxy{number}", NIXCACHE_CACHES_FILE=str(file))


def _write_paths(proxy: ProxyProcess, hash_parts: Sequence[HashPart]) -> Path:
    """Write what wrk asks for, once all caches are there; every path is asked for once before."""
    proxy.wait_until(lambda status: all(cache["index"]["ready"] for cache in status["caches"]))
    connection = http.client.HTTPConnection(proxy.host)
    for hash_part in hash_parts:
        connection.request("HEAD", f"/{hash_part}.narinfo")
        assert connection.getresponse().read() == b""
    file = proxy.folder / "paths"
    file.write_text("".join(f"/{hash_part}.narinfo\n" for hash_part in hash_parts))
    return file


def _ask(proxy: ProxyProcess, paths: Path, seconds: int) -> tuple[float, float]:
    """Give the hits a second, and their p99 in ms."""
    answers = ask_at_random(proxy.host, paths, seconds)
    if answers.errors:
        raise RuntimeError(f"{answers.errors} of {answers.count} are no hits")
    return answers.per_second, answers.p99


def _compare_roots(
    bench: Bench, roots: dict[int, ProxyProcess], held: Sequence[Sequence[HashPart]], seconds: int
) -> None:
    files = {number: _write_paths(root, held[number - 1][:_ASKED_FOR]) for number, root in roots.items()}

    def measure(number: int) -> Measurement:
        return {_HIT: 1e6 / _ask(roots[number], files[number], seconds)[0]}

    bench.compare({_named(number): partial(measure, number) for number in _CACHES})
    bench.expect(Target(_HIT, _named(_CACHES[-1]), 3, beside=_named(1)))
    for number, series in zip(_CACHES, _ANONYMOUS, strict=True):
        bench.figures.record(series, OURS, roots[number].anonymous_bytes() / _MIB)
        bench.expect(Target(series, OURS, 60 + 5 * number))


def _named(number: int) -> str:
    return f"{number} cache{'s' if number > 1 else ''}"


def _compare_pages(bench: Bench, proxy: ProxyProcess, hash_parts: Sequence[HashPart], seconds: int) -> None:
    file = proxy.folder / "paths"
    proxy.ask("/", headers=_BROWSER)  # the first page takes longer, once

    def beside() -> Measurement:
        with _pages_asked(proxy, hash_parts) as took:
            p99 = _ask(proxy, file, seconds)[1]
        searches, paths = (statistics.quantiles(took[kind], n=20)[18] * 1000 for kind in (0, 1))
        return {_BESIDE_PAGES: p99, _SEARCH: searches, _PATH: paths}

    bench.compare({OURS: beside, _ALONE: lambda: {_BESIDE_PAGES: _ask(proxy, file, seconds)[1]}})
    bench.expect(Target(_BESIDE_PAGES, OURS, 2, beside=_ALONE))
    bench.expect(Target(_SEARCH, OURS, 200))


@contextmanager
def _pages_asked(
    proxy: ProxyProcess, hash_parts: Sequence[HashPart]
) -> Iterator[tuple[list[float], list[float]]]:
    """Ask for a search and a path in turn while the block runs; gives how long each took."""
    took: tuple[list[float], list[float]] = ([], [])
    is_over = threading.Event()

    def ask() -> None:
        for number in count():
            if is_over.is_set():
                return
            part = random.choice(hash_parts)
            # What few names have, what all have, and a store path.
            wanted = (f"/?q={name_of(part)[-4:]}", f"/_path/{part}", "/?q=object", f"/_path/{part}")[
                number % 4
            ]
            begun = time.monotonic()
            assert proxy.ask(wanted, headers=_BROWSER).status == 200
            took[number % 2].append(time.monotonic() - begun)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield took
    finally:
        is_over.set()
        asking.join()
