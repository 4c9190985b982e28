"""Twice as much as is read of a registry, of each kind that it controls: the proxy goes on as before.

Its memory stays below 400 MB, its event loop is never blocked for long, /health answers all the while, and
each limit is named in one line of the log.
"""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache.listing import MAX_SEGMENTS
from nixcache_oci.cache.segment import SegmentTag
from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, TableHeader, render_table
from nixcache_oci.cache.table_budget import MAX_ALL_TABLES_BYTES, MAX_ENTRIES
from nixcache_oci.cache.version1 import MAX_DOCUMENT_BYTES
from nixcache_oci.nix import base32
from nixcache_oci.nix.signature import Signature, fingerprint
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from tests.cache.test_catalog import KEY
from tests.hostile.story import MOST_ANSWER_SECONDS, MOST_BLOCKED_SECONDS, MOST_MEMORY_BYTES, check_well
from tests.hostile.test_registry_data import MIB, NAME, put_segment, skippable
from tests.support.journey import put, settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.odd_tables import FORMAT, HEADER, LATER
from tests.support.proxy import WatchedProxy
from tests.support.publish import CREATED
from tests.support.registries import Ghcr

MOST_STATUS_BYTES = 64 * 1024
HOUR = timedelta(hours=1)
EARLIER = CREATED - 1000 * HOUR
BALLAST = skippable(bytes(MAX_TABLE_BYTES // 60))  # as if what follows did not compress so well


class Health(threading.Thread):
    """Asks for /health again and again; ``worst`` is the longest that it took, in seconds."""

    def __init__(self, proxy: WatchedProxy) -> None:
        super().__init__()
        self.worst = 0.0
        self._proxy = proxy
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.05):
            began = time.monotonic()
            assert self._proxy.ask("/health").status == 200
            self.worst = max(self.worst, time.monotonic() - began)

    def stop(self) -> float:
        self._over.set()
        self.join()
        return self.worst


@pytest.fixture(params=[()])
def watched(ghcr: Ghcr, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[WatchedProxy]:
    """Serves one object all the while. The parameter is the keys that it has to be signed with."""
    put(ghcr, [store_object("small").signed(KEY)])
    settings = settings_of(ghcr, tmp_path)
    if request.param:
        settings["NIXCACHE_PUBLIC_KEYS"] = " ".join(request.param)
    with WatchedProxy(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        health = Health(proxy)
        health.start()
        try:
            yield proxy
            check_well(proxy)
            assert len(proxy.ask("/_status").body) < MOST_STATUS_BYTES
        finally:
            worst_answer = health.stop()
        assert worst_answer < MOST_ANSWER_SECONDS
        assert proxy.peak_bytes() < MOST_MEMORY_BYTES
        assert proxy.worst_block_seconds() < MOST_BLOCKED_SECONDS


def lines_of(proxy: WatchedProxy, text: str) -> int:
    return sum(text in line for line in proxy.log.splitlines())


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def descriptor_of(number: int, table: Digest) -> dict[str, object]:
    return {
        "mediaType": media_type.IMAGE_MANIFEST,
        "digest": f"sha256:{number:064x}",
        "size": 2,
        "annotations": {
            media_type.ANNOTATION_TABLE: str(table),
            media_type.ANNOTATION_CREATED: "2026-01-01T00:00:00Z",
            media_type.ANNOTATION_PATHS: "1",
        },
    }


def put_index(ghcr: Ghcr, descriptors: list[dict[str, object]]) -> None:
    """List these besides what only its tag knows."""
    index = {
        "schemaVersion": 2,
        "mediaType": media_type.IMAGE_INDEX,
        "annotations": FORMAT,
        "manifests": descriptors,
    }
    content = json.dumps(index, separators=(",", ":")).encode()
    ghcr.server.put_manifest(NAME, "cache-index", content, media_type.IMAGE_INDEX)


def test_segments(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """As many as an index of 4 MiB can name: the newest are read, and a narinfo is found as fast as ever."""
    table = ghcr.server.put_blob(NAME, zstandard.compress(render_table(Table(TableHeader(LATER)))))
    put_index(ghcr, [descriptor_of(number, table) for number in range(2 * MAX_SEGMENTS)])
    for _ in range(2):
        assert watched.refresh() == {"refreshed": True, "entries": 1}
    assert watched.status()["segments"] == MAX_SEGMENTS
    left_out = f"{MAX_SEGMENTS + 1} of {2 * MAX_SEGMENTS + 1} segments left out"
    assert left_out in watched.status()["index"]["left_out"]
    assert lines_of(watched, "over a limit") == 1


def test_segments_that_are_damaged(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """One table that is none, named thousands of times, is fetched once, and told once."""
    table = ghcr.server.put_blob(NAME, b"no table")
    put_index(ghcr, [descriptor_of(number, table) for number in range(2 * MAX_SEGMENTS)])
    before = ghcr.server.count("blob-get")
    for look in range(1, 3):
        assert watched.refresh() == {"refreshed": True, "entries": 1}
        assert ghcr.server.count("blob-get") - before == look
    status = watched.status()
    assert status["index"]["damaged_count"] == MAX_SEGMENTS - 1
    assert len(status["index"]["damaged_tables"]) == 20
    assert lines_of(watched, "tables cannot be had") == 1


def test_segments_that_change_at_each_look(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """What is missing is remembered up to a number; what it says on disk and in /_status stays small."""
    table = ghcr.server.put_blob(NAME, zstandard.compress(render_table(Table(TableHeader(LATER)))))
    for look in range(4):
        put_index(ghcr, [descriptor_of(1000 * look + number, table) for number in range(1000)])
        assert watched.refresh()["refreshed"] is True
    assert watched.status()["index"]["regression"]["missing_count"] == 256
    [seen] = watched.folder.rglob("seen.json")
    assert seen.stat().st_size < 64 * 1024


def test_tags_that_no_index_lists(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """Each costs a request: the newest are asked for, whether they are there or not."""
    for number in range(2 * MAX_SEGMENTS):
        tag = SegmentTag(LATER, Digest(f"{number:064x}"))
        ghcr.server.put_manifest(NAME, str(tag), b'{"odd": true}')
    before = ghcr.server.count("manifest-get")
    assert watched.refresh() == {"refreshed": True, "entries": 1}
    assert MAX_SEGMENTS - 1 <= ghcr.server.count("manifest-get") - before <= MAX_SEGMENTS + 1
    assert lines_of(watched, "over a limit") == 1


def test_tables_that_inflate_to_much_more(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """64 MiB out of 4 KiB, thirty times: hardly any of it comes to the disk."""
    rest = zstandard.ZstdCompressor(level=19).compress(b"\nLater: " + b"x" * (MAX_TABLE_BYTES - 200) + b"\n")
    for number in range(30):
        put_segment(ghcr.server, head_of(number) + rest)
    assert watched.refresh() == {"refreshed": True, "entries": 1}
    assert watched.status()["index"]["damaged_count"] == 30
    assert disk_bytes(watched.folder / "index") < 16 * MIB
    assert lines_of(watched, "tables cannot be had") == 1


def head_of(number: int) -> bytes:
    """A header in a frame of its own, so that what follows makes another table."""
    text = f"Nixcache-Table: 2\nCreated: 2026-11-21T04:15:00Z\nX-Number: {number}\n"
    return zstandard.compress(text.encode())


def test_all_tables_together(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """Each is within its limits; the disk has what all of them may take."""
    lines = b"\n" + (b"Later: " + b"x" * 500_000 + b"\n") * (MAX_TABLE_BYTES // 500_100)
    rest = BALLAST + zstandard.ZstdCompressor(level=1).compress(lines)
    for number in range(2 * MAX_ALL_TABLES_BYTES // len(lines)):
        put_segment(ghcr.server, head_of(number) + rest, EARLIER - number * HOUR)
    assert watched.refresh() == {"refreshed": True, "entries": 1}
    status = watched.status()
    assert status["index"]["damaged_count"] == 0
    # Those that were on their way beside the last one may not fit any more.
    most = 1 + MAX_ALL_TABLES_BYTES // len(lines)
    assert most - 3 <= status["segments"] <= most
    assert f"over the limit of {MAX_ALL_TABLES_BYTES} bytes" in status["index"]["left_out"]
    assert disk_bytes(watched.folder / "index") <= MAX_ALL_TABLES_BYTES + MIB
    assert lines_of(watched, "over a limit") == 1


def test_a_table_that_takes_long_to_search(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """What looks like a narinfo, up to the last letter, sixteen thousand times."""
    lines = (b"\n\nStorePath: " + b"/" * 4090) * (MAX_TABLE_BYTES // 4200) + b"\n"
    put_segment(ghcr.server, head_of(0) + BALLAST + zstandard.compress(lines))
    assert watched.refresh() == {"refreshed": True, "entries": 1}


def test_all_entries_together(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """The smallest that are found take 50 bytes of a table: a table has room for over a million."""
    count = MAX_ENTRIES // 4
    # Hash parts in order; their last letters are the smallest digits of a number.
    parts = (f"{prefix}{end}" for prefix in letters_from("zz0000") for end in base32.ALPHABET)
    rows = "".join(f"\nStorePath: /s/{'z' * 25}{part}-\n" for part in islice(parts, count))
    assert rows.count("Store") == count
    rest = BALLAST + zstandard.ZstdCompressor(level=1).compress(rows.encode())
    for number in range(8):
        put_segment(ghcr.server, head_of(number) + rest, EARLIER - number * HOUR)
    assert watched.refresh() == {"refreshed": True, "entries": 1 + 3 * count}
    assert f"over the limit of {MAX_ENTRIES} entries" in watched.status()["index"]["left_out"]
    assert watched.ask(f"/{hash_part_of('nowhere')}.narinfo").status == 404
    assert lines_of(watched, "over a limit") == 1


def letters_from(first: str) -> Iterator[str]:
    """Count up in nix32."""
    number = base32.to_number(first.encode())
    while True:
        digits = (base32.ALPHABET[number >> shift & 31] for shift in range(5 * (len(first) - 1), -1, -5))
        yield "".join(digits)
        number += 1


@pytest.mark.parametrize(
    ("filling", "error"),
    [
        (b'"x":[' + b"[]," * (MAX_DOCUMENT_BYTES // 3 - 20) + b"[]]", "values are passed over"),
        (b'"gc_roots":[' + b"{}," * (MAX_DOCUMENT_BYTES // 3 - 20) + b"{}]", "over the limit of 200000"),
        (b'"x":"' + b"\\u0041" * (2 * MAX_DOCUMENT_BYTES // 6) + b'"', "over the limit"),
        (b'"y":{' + b",".join(b'"%d":1' % number for number in range(4_000_000)) + b"}", "passed over"),
    ],
    ids=["lists", "roots", "twice as large", "names"],
)
def test_documents_of_version_1(ghcr: Ghcr, watched: WatchedProxy, filling: bytes, error: str) -> None:
    """However much it holds, it is read a little at a time, or not at all; what was served is served on."""
    put_version1(ghcr, b'{"version":1,"entries":{},' + filling + b"}")
    assert watched.refresh() == {"refreshed": True, "entries": 1}
    assert error in watched.status()["index"]["damaged_tables"]["cache-index"]
    assert lines_of(watched, "tables cannot be had") == 1


def test_entries_of_version_1(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """What is skipped is counted in one line; good ones are served, as many as there is room for."""
    text = store_object("x").narinfo.render().replace("\n", "\\n")
    own = store_object("x").narinfo.store_path.hash_part
    good = '"%s":{"narinfo":"%s","nar_digest":"' + "0" * 64 + '"}'
    parts = [f"{'z' * 26}{part}" for part in islice(letters_from("z00000"), 60_000)]
    entries = [good % (part, text.replace(own, part)) for part in parts]
    entries += [f'"{number}":{{}}' for number in range(100_000)]
    put_version1(ghcr, b'{"version":1,"entries":{' + ",".join(entries).encode() + b"}}")
    assert watched.refresh() == {"refreshed": True, "entries": 60_001}
    assert watched.ask(f"/{parts[-1]}.narinfo").status == 200
    assert lines_of(watched, "entries skipped") == 1
    assert len(watched.log) < 10_000


def put_version1(ghcr: Ghcr, document: bytes) -> None:
    layer = Descriptor(media_type.INDEX_V1, ghcr.server.put_blob(NAME, document), len(document))
    ghcr.server.put_blob(NAME, EMPTY_CONFIG_CONTENT)
    manifest = {"schemaVersion": 2, "config": EMPTY_CONFIG.to_json(), "layers": [layer.to_json()]}
    ghcr.server.put_manifest(NAME, "cache-index", json.dumps(manifest).encode())


@pytest.mark.parametrize("watched", [(str(KEY.public_key),)], indirect=True)
def test_signatures_and_references(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """Narinfos of 1 MiB: whatever they hold, they are validated in no time, ahead and when asked for."""
    narinfo = store_object("x").narinfo
    wrong = [Signature(KEY.name, number.to_bytes(64, "little")) for number in range(10_000)]
    references = tuple(f"{hash_part_of(str(number))}-{'n' * 16}" for number in range(20_000))
    many = [replace(narinfo, sigs=tuple(wrong)), replace(narinfo, sigs=tuple(wrong[:200]))]
    many.append(replace(narinfo, references=references, sigs=tuple(wrong[:4])))
    rows, parts = [], []
    for number in range(30):
        part = hash_part_of(f"many-{number}")
        path = replace(narinfo.store_path, hash_part=part)
        rows.append(replace(many[number % 3], store_path=path))
        parts.append(part)
    signed = replace(narinfo, references=references)
    good = replace(signed, sigs=(KEY.sign(fingerprint(signed)),))
    put_segment(ghcr.server, zstandard.compress(render_table(Table(TableHeader(LATER), (), (*rows, good)))))
    assert watched.refresh() == {"refreshed": True, "entries": 32}
    assert [watched.ask(f"/{part}.narinfo").status for part in parts] == [404] * 30
    assert watched.ask(f"/{hash_part_of('x')}.narinfo").status == 200


def test_tables_that_all_list_one_path(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """Whoever asks for it waits for a few of them to be validated and compared, and not for all."""
    narinfo = replace(store_object("x").narinfo, extra=(("Note", "x" * 900_000),))
    for number in range(60):
        variant = replace(narinfo, nar_size=number + 1)
        table = render_table(Table(TableHeader(LATER), (), (variant,)))
        put_segment(ghcr.server, zstandard.compress(table), EARLIER - number * HOUR)
    assert watched.refresh() == {"refreshed": True, "entries": 61}
    for _ in range(20):
        assert watched.ask(f"/{hash_part_of('x')}.narinfo").status == 200


def test_headers(ghcr: Ghcr, watched: WatchedProxy) -> None:
    """What a header says is kept of each table, and shown: keys, and fields that nobody knows yet."""
    for number in range(300):
        keys = tuple(f"{'k' * 450}-{number}-{count}:AAAA" for count in range(20))
        extra = tuple((f"X-{count}", "x") for count in range(500))
        table = render_table(Table(TableHeader(LATER, public_keys=keys, extra=extra)))
        put_segment(ghcr.server, zstandard.compress(table), LATER + number * HOUR)
    large = HEADER + "X: x\n" * 200_000
    for number in range(100):
        put_segment(ghcr.server, zstandard.compress(large.replace("X", f"X{number}", 1).encode()))
    assert watched.refresh()["refreshed"] is True
    status = watched.status()
    assert status["index"]["damaged_count"] == 100
    assert 0 < len(status["public_keys"]["recorded_others"]) <= 32
    assert lines_of(watched, "tables cannot be had") == 1


@pytest.mark.parametrize("value", [b"{}", b"[]", b"1.5", b'"\\u0041"', b'{"a":1}'])
def test_indexes_of_many_small_values(ghcr: Ghcr, watched: WatchedProxy, value: bytes) -> None:
    """4 MiB of them take hundreds of MiB, and a third of a second in which no other thread runs."""
    values = b",".join([value] * (4 * MIB // (len(value) + 1) - 100))
    for name in (b"manifests", b"x"):
        index = b'{"schemaVersion":2,"manifests":[],"' + name + b'":[' + values + b"]}"
        ghcr.server.put_manifest(NAME, "cache-index", index, media_type.IMAGE_INDEX)
        assert watched.refresh() == {"refreshed": False, "entries": 1}
