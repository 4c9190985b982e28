"""What a large cache costs: start from disk, memory, and a refresh beside running requests.

    .venv/bin/python -m bench.scale --paths 100000

Times are of the machine that it runs on; sizes and counts are not.
"""

import argparse
import hashlib
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

from nixcache_oci.cache.commit import list_segments, push_segment
from nixcache_oci.cache.table import Table, TableHeader
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey, fingerprint
from tests.support.journey import push_with, put, settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import CREATED
from tests.support.registries import ghcr_double

_PATHS_OF_A_SEGMENT = 50_000
_STARTS = 5


def main() -> None:
    """Measure, and print one line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--paths", type=int, default=100_000)
    paths = parser.parse_args().paths
    key = SecretKey.generate("bench-1")
    with ghcr_double() as registry, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for table in _tables(paths, key):
            push_with(registry, partial(_commit, table))
        settings = settings_of(registry, folder)
        with ProxyProcess(folder, **settings) as proxy:
            proxy.wait_ready()
        result: dict[str, object] = {"paths": paths}
        starts = [_time_start(folder, settings) for _ in range(_STARTS)]
        result["start_to_first_narinfo_seconds"] = round(statistics.median(starts), 3)
        with ProxyProcess(folder, **settings) as proxy:
            proxy.wait_ready()
            for number in range(0, paths, max(1, paths // 10_000)):
                assert proxy.ask(f"/{hash_part_of(str(number))}.narinfo").status == 200
            result["anonymous_memory_mb"] = round(proxy.anonymous_bytes() / 2**20, 1)
            proxy.refresh()
            put(registry, [store_object(f"new-{number}") for number in range(10)], [key])
            registry.server.reset_requests()
            result["longest_request_during_refresh_ms"] = round(_refresh_beside_requests(proxy, paths), 2)
            result["refresh_bytes"] = sum(record.bytes_sent for record in registry.server.requests)
            result["refresh_requests"] = len(registry.server.requests)
            assert proxy.ask(f"/{hash_part_of('new-1')}.narinfo").status == 200
            result["anonymous_memory_after_refresh_mb"] = round(proxy.anonymous_bytes() / 2**20, 1)
        print(json.dumps(result, indent=2))


def _tables(paths: int, key: SecretKey) -> Iterator[Table]:
    template = store_object("template").narinfo
    for start in range(0, paths, _PATHS_OF_A_SEGMENT):
        narinfos = []
        for number in range(start, min(paths, start + _PATHS_OF_A_SEGMENT)):
            blob = hashlib.sha256(str(number).encode()).hexdigest()
            path = replace(template.store_path, hash_part=hash_part_of(str(number)))
            references = tuple(f"{hash_part_of(str(max(0, number - back)))}-{path.name}" for back in range(4))
            narinfo = replace(
                template,
                store_path=path,
                url=f"nar/{blob}/0-1000.nar.zst",
                compression="zstd",
                references=references,
            )
            narinfos.append(replace(narinfo, sigs=(key.sign(fingerprint(narinfo)),)))
        created = CREATED + timedelta(seconds=start)
        yield Table(TableHeader(created, public_keys=(str(key.public_key),)), (), tuple(narinfos))


async def _commit(table: Table, client: Repository) -> None:
    # The NARs themselves play no part here.
    await list_segments(client, [await push_segment(client, table, [])])


def _time_start(folder: Path, settings: dict[str, str]) -> float:
    started = time.monotonic()
    with ProxyProcess(folder, **settings) as proxy:
        assert proxy.ask(f"/{hash_part_of('0')}.narinfo").status == 200
        return time.monotonic() - started


def _refresh_beside_requests(proxy: ProxyProcess, paths: int) -> float:
    """Ask without a pause while the index is refreshed; gives the longest wait in milliseconds."""
    longest = 0.0
    is_over = threading.Event()

    def ask() -> None:
        nonlocal longest
        connection = http.client.HTTPConnection(proxy.host)
        number = 0
        while not is_over.is_set():
            number = (number + 7919) % paths
            begun = time.perf_counter()
            connection.request("HEAD", f"/{hash_part_of(str(number))}.narinfo")
            connection.getresponse().read()
            longest = max(longest, time.perf_counter() - begun)
        connection.close()

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    proxy.refresh()
    time.sleep(0.5)
    is_over.set()
    thread.join()
    return longest * 1000


if __name__ == "__main__":
    main()
