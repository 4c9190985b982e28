"""What a registry may hold: the proxy serves what is right beside it, and keeps what it had."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.segment import SegmentTag, build_manifest
from nixcache_oci.errors import Error
from nixcache_oci.maintenance.gc.roots import count_roots
from nixcache_oci.nix.content_address import ContentAddress, Method
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import File, dump_tree
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from tests.hostile.story import Tally, check_well
from tests.support.ghcr import GhcrDouble
from tests.support.journey import put, settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.odd_tables import FORMAT, HEADER, LATER, narinfo_of, table_of
from tests.support.proxy import ProxyProcess
from tests.support.publish import publish
from tests.support.registries import REPO, Ghcr

NAME = f"{REPO}/nix-cache"
MIB = 1024 * 1024
FRAME = b"\x28\xb5\x2f\xfd"
LAST_BLOCK_OF_ZEROS = (2**21 - 1 << 3 | 0b011).to_bytes(3, "little") + b"\0"  # one byte, 2 MiB times


@pytest.fixture
def well(ghcr: Ghcr, tmp_path: Path) -> Iterator[ProxyProcess]:
    """Serves one object, whatever else comes; afterwards it is as well as before."""
    put(ghcr, [store_object("small")])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as running:
        running.wait_ready()
        yield running
        check_well(running)


def put_segment(ghcr: GhcrDouble, table: bytes, created: datetime = LATER) -> Digest:
    """Store a segment whose table are these bytes; only its tag knows it."""
    ghcr.put_blob(NAME, EMPTY_CONFIG_CONTENT)
    digest = ghcr.put_blob(NAME, table)
    descriptor = Descriptor(media_type.TABLE, digest, len(table))
    manifest = build_manifest(descriptor, [], created=created, paths=1, source=None)
    return ghcr.put_manifest(NAME, str(SegmentTag(created, Digest.of(manifest))), manifest)


def frame(size: int) -> bytes:
    """Write the head of a zstd frame that announces this many bytes, and no content."""
    return FRAME + bytes([0b11100000]) + size.to_bytes(8, "little")


def skippable(content: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


LONE = table_of(narinfo_of("bad"))
BOMBS: dict[str, bytes] = {
    "a frame that announces 1 TiB": frame(2**40) + LAST_BLOCK_OF_ZEROS,
    "a frame that announces 2^64-1 bytes": frame(2**64 - 1) + LAST_BLOCK_OF_ZEROS,
    "a window of 2 GiB": FRAME + bytes([0, 21 << 3]) + LAST_BLOCK_OF_ZEROS,
    "a window of 3.75 TiB": FRAME + bytes([0, 0xFF]) + LAST_BLOCK_OF_ZEROS,
    "a dictionary that nobody has": FRAME + b"\x23\x01\x02\x03\x04\x00" + LAST_BLOCK_OF_ZEROS,
    "4 GiB of zeros": zstandard.compress(bytes(32 * MIB)) * 128,
    "64 MiB and one byte": zstandard.compress(HEADER.encode() + b"\n" * (64 * MIB)),
    "a million empty frames": zstandard.compress(b"") * 200_000 + b"x",
    "a skippable frame alone": skippable(b"x" * MIB),
    "a skippable frame that is cut": skippable(b"x" * MIB)[:100],
    "a checksum that is wrong": zstandard.ZstdCompressor(write_checksum=True).compress(b"x" * 100)[:-1]
    + b"x",
    "cut": LONE[:-5],
    "with a rest": LONE + b"rest",
    "gzip": b"\x1f\x8b\x08" + bytes(100),
    "NULs": zstandard.compress(HEADER.encode() + bytes(1000) + b"\n"),
    "nothing": b"",
    "no zstd": b"not zstd",
    "an empty text": zstandard.compress(b""),
    "no header": zstandard.compress(b"not a table\n"),
    "a header of another version": zstandard.compress(HEADER.replace("2\n", "3\n", 1).encode()),
    "narinfos out of order": table_of(*sorted((narinfo_of("bad"), narinfo_of("other")), reverse=True)),
    "a stanza of 2 MiB": zstandard.compress((HEADER + "Later: " + "x" * 2 * MIB + "\n").encode()),
}


def test_tables_that_are_bombs(ghcr: Ghcr, well: ProxyProcess, data: Tally) -> None:
    """Damage, noticed while they inflate: neither memory nor disk is filled, and the rest is served."""
    for bomb in BOMBS.values():
        put_segment(ghcr.server, bomb)
    before = well.anonymous_bytes()
    assert well.refresh()["refreshed"] is True
    assert well.anonymous_bytes() - before < 100 * MIB
    assert well.status()["index"]["damaged_count"] == len(BOMBS)
    assert well.ask(f"/{hash_part_of('bad')}.narinfo").status == 404
    index = well._folder / "index"
    assert sum(path.stat().st_size for path in index.rglob("*") if path.is_file()) < MIB
    data.add("tables that are bombs, or no tables", "damage, shown; the rest is served", times=len(BOMBS))


def test_frames_that_say_nothing_do_not_harm(ghcr: Ghcr, well: ProxyProcess, data: Tally) -> None:
    """RFC 8878 lets a table have them, and be parted over several frames."""
    text = zstandard.decompress(table_of(narinfo_of("framed")))
    frames = b"".join(zstandard.compress(text[at : at + 50]) for at in range(0, len(text), 50))
    put_segment(ghcr.server, skippable(b"x") + frames + skippable(b""))
    assert well.refresh() == {"refreshed": True, "entries": 2}
    assert well.ask(f"/{hash_part_of('framed')}.narinfo").status == 200
    data.add("tables of many and of skippable frames", "read")


def test_slices_that_lie_nowhere(ghcr: Ghcr, well: ProxyProcess, data: Tally) -> None:
    """No narinfo, or a NAR that is 404: never a byte of something else."""
    pack = NarInfo.parse(well.ask(f"/{hash_part_of('small')}.narinfo").body).url.split("/")[1]
    places = [
        *("-1-10", "0--1", "0-0", "00-10", "0-010", "+0-10", "0x0-10", "0-10-20", "10", "-", "0.0-10"),
        "\u0661-\u0662",
        *(f"{10**30}-10", f"0-{10**30}", f"{2**64}-10", f"{2**64 - 5}-10", f"{2**63}-{2**63}"),
        "9" * 5000 + "-1",
        *("16777216-1", "16777215-2", "0-262145", "100000-1", "16777000-100", "0-262144", "5000-262144"),
    ]
    urls = [f"nar/{pack}/{place}.nar.zst" for place in places]
    urls += [f"nar/{'0' * 64}/0-10.nar.zst", f"nar/{'0' * 64}.nar.zst", f"nar/{pack.upper()}/0-10.nar.zst"]
    seeds = {f"place-{number}": url for number, url in enumerate(urls)}
    put_segment(ghcr.server, table_of(*sorted(narinfo_of(seed, URL=url) for seed, url in seeds.items())))
    assert well.refresh() == {"refreshed": True, "entries": 1 + len(urls)}
    for seed, url in seeds.items():
        narinfo = well.ask(f"/{hash_part_of(seed)}.narinfo")
        assert narinfo.status in {200, 404}
        if narinfo.status == 200:
            assert well.ask(f"/{url}").status == 404, url
    data.add("slices outside of their pack", "no narinfo, or 404 for the NAR", times=len(urls))


NOTES = {
    "table": media_type.ANNOTATION_TABLE,
    "created": media_type.ANNOTATION_CREATED,
    "paths": media_type.ANNOTATION_PATHS,
    "condemned": media_type.ANNOTATION_CONDEMNED,
}
NUMBERS = [
    *("0", "-1", "1.0", "1e3", "1e400", "0x10", " 1", "1 ", "", "\u0661", "true", f"{2**64}", f"{10**100}"),
]


BAD_FIELDS: tuple[dict[str, str], ...] = (
    *({"NarSize": value or " "} for value in NUMBERS),
    *({"FileSize": value or " "} for value in NUMBERS if value != "0"),  # every Nix takes 0 there
    *({"NarHash": ""}, {"NarHash": "sha256:short"}, {"Compression": "magic"}, {"Deriver": "\x01"}),
    *({"URL": url} for url in ("", "../../etc/passwd", "http://evil.example/x.nar", "nar/x.nar")),
    {"References": "not a base name"},
)


def test_a_malformed_narinfo_is_a_miss(ghcr: Ghcr, well: ProxyProcess, data: Tally) -> None:
    """Nix would end a build over it, where it goes on at a miss; its neighbours are served."""
    seeds = {f"bad-{number}": changes for number, changes in enumerate(BAD_FIELDS)}
    seeds["nameless"] = {"StorePath": f"/nix/store/{hash_part_of('nameless')}-"}
    stanzas = [narinfo_of(seed, **changes) for seed, changes in {**seeds, "neighbour": {}}.items()]
    put_segment(ghcr.server, table_of(*sorted(stanzas)))
    assert well.refresh()["entries"] == 2 + len(seeds)
    before = well.status()["counters"]["misses"]
    for seed, changes in seeds.items():
        assert well.ask(f"/{hash_part_of(seed)}.narinfo").status == 404, changes
    assert well.status()["counters"]["misses"] == before + len(seeds)
    assert well.ask(f"/{hash_part_of('neighbour')}.narinfo").status == 200
    data.add("sizes and other fields of narinfos out of range", "404", times=len(seeds))


def index_of(**changes: object) -> bytes:
    """Write an index with one descriptor; fields of either, and annotations of the latter, are changed."""
    notes: dict[str, object] = {
        "table": f"sha256:{'1' * 64}",
        "created": "2026-11-21T03:15:00Z",
        "paths": "1",
        **{name: value for name, value in changes.items() if name in NOTES},
    }
    descriptor = {
        "mediaType": media_type.IMAGE_MANIFEST,
        "digest": f"sha256:{'0' * 64}",
        "size": 100,
        "annotations": {NOTES[name]: value for name, value in notes.items()},
        **{name: value for name, value in changes.items() if name in {"size", "digest", "annotations"}},
    }
    index: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": media_type.IMAGE_INDEX,
        "annotations": FORMAT,
        "manifests": [descriptor],
        **{name: changes[name] for name in ("schemaVersion", "mediaType", "manifests") if name in changes},
    }
    return json.dumps(index).encode()


GOOD = index_of()
# Values of one field, each of which makes the index none.
WRONG: dict[str, tuple[object, ...]] = {
    "size": (-1, True, 1.5, "5", None, [], 2**63, 10**100, 1e30),
    "digest": ("", 1, None, "sha256:", "md5:" + "0" * 32, f"sha256:{'A' * 64}"),
    "mediaType": (1, "x", media_type.IMAGE_MANIFEST, "text/html", [], "a/b\n"),
    "annotations": (1, [], "x", {"a": 1}, {"a": None}, {}),
    "table": ("", 1, "sha256:x", "../x"),
    "created": ("", 1, "now", "2026-13-01T00:00:00Z", "2026-11-21", "0000-01-01T00:00:00Z"),
    "paths": ("", "-1", "1e9", "1.0", "9" * 40, "\u0661", 1, " 1"),
    "condemned": ("", "yes", True, "2026-11-21T03:15:00+01:00"),
    "schemaVersion": (1, 3, "2", True, None, 2.5),
    "manifests": ({}, "all", 1, [1], [None], [[]], [{}]),
}
BAD_INDEXES: tuple[bytes, ...] = (
    *(index_of(**{field: value}) for field, values in WRONG.items() for value in values),
    *(GOOD.replace(b"100", size) for size in (b"1e400", b"-0.5", b"NaN", b"01", b"9" * 5000)),
    *(b"[" * depth + b"]" * depth for depth in (10, 100_000, 1_000_000)),
    GOOD[:-1] + b',"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    *(GOOD[:-1] + more + b"}" for more in (b',"config":{}', b',"layers":[]')),
    *(GOOD[:-1] + more + b"}" for more in (b',"schemaVersion":1', b',"annotations":{}')),  # given twice
    *(
        b"",
        b"{",
        b"null",
        b"1",
        b'"x"',
        b"<html></html>",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf" + GOOD,
        GOOD + b"x",
    ),
    *(GOOD.decode().encode(encoding) for encoding in ("utf-16", "utf-32")),
    *(GOOD.replace(b'format": "2"', b'format": "%s"' % version) for version in (b"3", b"")),
    GOOD.replace(FORMAT["dev.nixcache.watermark"].encode(), b"yesterday"),
    GOOD + b" " * (4 * MIB),
    b'{"schemaVersion":2,"manifests":[' + b",".join([b"{}"] * 1_000_000) + b"]}",
)


async def test_indexes_of_any_kind(ghcr: Ghcr, tmp_path: Path, data: Tally) -> None:
    """An error that is told, and never an empty cache: what was there is served on."""
    client = ghcr.client()
    await publish(client, [store_object("small")])
    index = LiveIndex(client, IndexFolder(tmp_path, client.name), (), 300, Counters())
    await index.refresh(thoroughly=True)
    for content in BAD_INDEXES:
        ghcr.server.put_manifest(NAME, "cache-index", content, media_type.IMAGE_INDEX)
        with pytest.raises(Error) as told:
            await index.refresh(thoroughly=True)
        assert 0 < len(str(told.value)) < 2000, content[:300]
        assert "\n" not in str(told.value)
        assert index.catalog is not None
        assert index.catalog.find(hash_part_of("small")) is not None
    await client.close()
    data.add(
        "indexes of any kind", "an error of one line; what was there is served on", times=len(BAD_INDEXES)
    )


def layers(count: int) -> bytes:
    """Write a segment's manifest with this many layers."""
    layer = json.dumps(EMPTY_CONFIG.to_json())
    text = build_manifest(
        Descriptor(media_type.TABLE, Digest.of(b"t"), 1), [], created=LATER, paths=1, source=None
    )
    return text.replace(b'"layers":[', b'"layers":[' + b",".join([layer.encode()] * count) + b",", 1)


def test_tags_and_manifests_of_any_kind(ghcr: Ghcr, well: ProxyProcess, data: Tally) -> None:
    """Whatever is tagged like a segment and is none is left out; the others are served."""
    moment = "20261121T041500Z"
    manifests = [
        *(b"{}", b"", b"null", b"[" * 100_000, GOOD, layers(100), layers(10_000), layers(28_000)),
        json.dumps(
            {"schemaVersion": 2, "artifactType": media_type.SEGMENT, "config": 1, "layers": []}
        ).encode(),
        json.dumps({"schemaVersion": 2, "config": EMPTY_CONFIG.to_json(), "layers": []}).encode(),
        layers(1).replace(b'"size":2', b'"size":-2'),
        layers(1).replace(media_type.TABLE.encode(), media_type.PACK.encode()),
        layers(0).replace(b"2026-11-21", b"0000-00-00"),
    ]
    for content in manifests:
        ghcr.server.put_manifest(NAME, f"segment-{moment}-{Digest.of(content).hex}", content)
    tags = [
        *("segment-", "segment-x", f"segment-{moment}", f"segment-{moment}-", f"segment-{moment}-{'A' * 64}"),
        *(
            f"segment-99999999T999999Z-{'0' * 64}",
            f"segment-{moment}-{'0' * 63}",
            f"segment-{moment}-{'0' * 65}",
        ),
        *(
            f"segment-{moment}-{'0' * 64}\n",
            f" segment-{moment}-{'0' * 64}",
            f"segment-{moment}-../../../etc",
        ),
        *(
            f"segment-00000101T000000Z-{'0' * 64}",
            f"SEGMENT-{moment}-{'0' * 64}",
            "\0",
            "\ud83d",
            "a" * 10_000,
            "",
        ),
        *(
            f"segment-{moment}-{'0' * 64}",
            f"segment-00010101T000000Z-{'0' * 64}",
            f"segment-\u0662\u0660\u0662\u06661121T041500Z-{'0' * 64}",
        ),
    ]
    for tag in tags:
        ghcr.server.put_manifest(NAME, tag, b'{"odd": true}')
    answer = well.refresh()
    assert answer["entries"] == 1
    assert well.ask(f"/{hash_part_of('small')}.narinfo").status == 200
    ghcr.server.delete_manifest(NAME, str(Digest.of(b'{"odd": true}')))
    put_segment(ghcr.server, table_of(narinfo_of("late")))
    assert well.refresh() == {"refreshed": True, "entries": 2}
    data.add("manifests tagged as segments that are none", "left out", times=len(manifests))
    data.add("tags of any form", "left out", times=len(tags))


def test_a_manifest_of_100_000_layers(ghcr: Ghcr, well: ProxyProcess, data: Tally) -> None:
    """It is not read: no registry takes over 4 MiB. What is in it is unknown, so nothing is given up."""
    content = layers(100_000)
    digest = ghcr.server.put_manifest(NAME, f"segment-20261121T041500Z-{Digest.of(content).hex}", content)
    assert well.refresh() == {"refreshed": False, "entries": 1}
    assert f"{digest}" in well.status()["index"]["last_error"]
    ghcr.server.delete_manifest(NAME, str(digest))
    assert well.refresh() == {"refreshed": True, "entries": 1}
    data.add("a manifest of 100,000 layers, 15 MB", "not read; told, and nothing is given up")


def test_a_hostile_version_1(ghcr: Ghcr, tmp_path: Path, data: Tally) -> None:
    """Each entry stands for itself; none is served under another's name."""
    narinfo, content = store_object("good").compressed()
    letters = narinfo.store_path.hash_part
    good: dict[str, object] = {
        "narinfo": narinfo.render(),
        "nar_digest": str(ghcr.server.put_blob(NAME, content)),
    }
    text = narinfo.render()
    bad: list[object] = [
        *(
            None,
            1,
            "x",
            [],
            {},
            {**good, "narinfo": 1},
            {**good, "nar_digest": None},
            {**good, "nar_digest": "x"},
        ),
        *(
            {**good, "nar_digest": "sha256:../../../etc"},
            {**good, "narinfo": text + "\n\nStorePath: /nix/store/x\n"},
        ),
        *(
            {**good, "narinfo": text.replace("NarSize", "Nope")},
            {**good, "narinfo": text + "X: \ud800\n"},
            good,
        ),
        {**good, "narinfo": text + "X: " + "a" * 2 * MIB + "\n"},
        {**good, "narinfo": text.replace(letters, hash_part_of("bad-3"))},
    ]
    entries: dict[str, object] = {hash_part_of(f"bad-{number}"): entry for number, entry in enumerate(bad)}
    odd_names = ["", "x", "../../etc/passwd", "\ud800", "a" * 10_000, letters.upper(), f"{letters}\n"]
    entries |= dict.fromkeys(odd_names, good)
    entries[letters] = good
    document = json.dumps(
        {"version": 1, "entries": entries, "public_key": ["x"], "gc_roots": [1, None, {}, "/", "\ud800"]}
    ).encode()
    layer = Descriptor(media_type.INDEX_V1, ghcr.server.put_blob(NAME, document), len(document))
    ghcr.server.put_blob(NAME, EMPTY_CONFIG_CONTENT)
    manifest = {"schemaVersion": 2, "config": EMPTY_CONFIG.to_json(), "layers": [layer.to_json()]}
    ghcr.server.put_manifest(NAME, "cache-index", json.dumps(manifest).encode())
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        assert proxy.wait_ready()["entries"] == 1
        assert proxy.ask(f"/{letters}.narinfo").status == 200
        for number in range(len(bad)):
            assert proxy.ask(f"/{hash_part_of(f'bad-{number}')}.narinfo").status == 404
        assert "Traceback" not in proxy.log
        assert max(map(len, proxy.log.splitlines())) < 4000
    data.add("entries of a version 1 index", "left out", times=len(bad) + len(odd_names))


@pytest.mark.parametrize("year", [1, 999, 9999])
def test_no_time_overflows(year: int, data: Tally) -> None:
    """A record may name any time: gc counts with it, and does not fall over it."""
    time = datetime(year, 12, 31, 23, 59, 59, tzinfo=UTC)
    path = store_object("x").narinfo.store_path
    record = PublishRecord("main", "1", time, (("x", path),))
    counted = count_roots([record], Moment(LATER), retention=timedelta(days=30), scope_ttl=timedelta(days=90))
    assert counted.paths == ({path} if year > LATER.year else set())
    data.add("records of the years 1, 999 and 9999", "counted", 3)


def test_paths_of_another_store(ghcr: Ghcr, tmp_path: Path) -> None:
    """A miss, as Nix would refuse them: in every way that narinfos are asked for."""
    foreign = narinfo_of("foreign", StorePath=f"/gnu/store/{hash_part_of('foreign')}-foreign")
    put_segment(ghcr.server, table_of(*sorted((foreign, narinfo_of("own")))))
    for store_dir, seed, other in (("/nix/store", "own", "foreign"), ("/gnu/store", "foreign", "own")):
        settings = {**settings_of(ghcr, tmp_path), "NIXCACHE_STORE_DIR": store_dir}
        with ProxyProcess(tmp_path / store_dir.replace("/", "-"), **settings) as proxy:
            assert proxy.wait_ready()["entries"] == 2
            for target in ("/{}.narinfo", "/%2e/../{}.narinfo", "/{}.narinfo?x"):
                assert proxy.ask(target.format(hash_part_of(other))).status == 404
            assert proxy.ask(f"/{hash_part_of(seed)}.narinfo").status == 200


def test_addresses_that_bind_no_nar(ghcr: Ghcr, tmp_path: Path) -> None:
    """Where keys are configured, only the hash of the whole NAR stands for a signature."""
    nar, other = (b"".join(dump_tree(File(text))) for text in (b"right", b"wrong"))
    right, wrong = (NixHash(hashlib.sha256(content).digest()) for content in (nar, other))
    contents = NixHash(hashlib.sha256(b"right").digest())
    claims = {
        "nar": (ContentAddress(Method.NAR, right), False, 200),
        "flat": (ContentAddress(Method.FLAT, contents), False, 404),
        "text": (ContentAddress(Method.TEXT, contents), False, 404),
        "self": (ContentAddress(Method.NAR, right), True, 404),
        "sha1": (ContentAddress(Method.NAR, NixHash(hashlib.sha1(nar).digest(), "sha1")), False, 404),
    }
    narinfos = []
    for name, (address, is_self, _) in claims.items():
        path = address.store_path(name, (), "/nix/store", refers_to_itself=is_self)
        references = (path.base_name,) if is_self else ()
        url = f"nar/{'0' * 64}.nar"
        claim = NarInfo(path, url, "none", right, len(nar), references=references, ca=str(address))
        narinfos.append((claim, claims[name][2]))
        path = address.store_path(f"{name}-wrong", (), "/nix/store", refers_to_itself=is_self)
        references = (path.base_name,) if is_self else ()
        narinfos.append((replace(claim, store_path=path, references=references, nar_hash=wrong), 404))
    stanzas = [claim.render() for claim, _ in sorted(narinfos, key=lambda one: one[0].store_path.hash_part)]
    put_segment(ghcr.server, table_of(*stanzas))
    settings = {
        **settings_of(ghcr, tmp_path),
        "NIXCACHE_PUBLIC_KEYS": str(SecretKey.generate("k").public_key),
    }
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        assert proxy.wait_ready()["entries"] == len(narinfos)
        for claim, status in narinfos:
            assert proxy.ask(f"/{claim.store_path.hash_part}.narinfo").status == status, claim.store_path
