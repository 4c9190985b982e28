"""Whatever lies in the registry: the proxy takes what is right, shows what is not, and keeps what it had."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache.segment import SegmentTag, build_manifest
from nixcache_oci.clients.layout import Layout
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG, EMPTY_CONFIG_CONTENT, Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import CREATED, publish

LATER = CREATED + timedelta(hours=1)
HEADER = "Nixcache-Table: 2\nCreated: 2026-11-21T04:15:00Z\n"
FORMAT = {"dev.nixcache.format": "2", "dev.nixcache.watermark": "1970-01-01T00:00:00Z"}

Harm = Callable[[Layout], Awaitable[None]]


def run(layout: Path, job: Harm) -> None:
    async def do() -> None:
        await job(Layout(layout))

    asyncio.run(do())


async def put_index(layout: Layout, document: dict[str, object]) -> None:
    content = json.dumps({"schemaVersion": 2, "mediaType": media_type.IMAGE_INDEX, **document}).encode()
    await layout.push_manifest("cache-index", content, media_type.IMAGE_INDEX)


async def put_table(layout: Layout, table: bytes) -> None:
    """Push a segment whose table are these bytes, whatever they are."""
    await layout.push_blob(EMPTY_CONFIG.digest, EMPTY_CONFIG_CONTENT)
    digest = Digest.of(table)
    await layout.push_blob(digest, table)
    descriptor = Descriptor(media_type.TABLE, digest, len(table))
    manifest = build_manifest(descriptor, [], created=LATER, paths=1, source=None)
    tag = SegmentTag(LATER, Digest.of(manifest))
    await layout.push_manifest(str(tag), manifest, media_type.IMAGE_MANIFEST)


def table_of(*stanzas: str) -> bytes:
    return zstandard.compress("\n".join([HEADER, *stanzas]).encode())


def narinfo_of(seed: str, **changes: str) -> str:
    """A narinfo in a table; a field that is changed to nothing is left out."""
    nar = "0" * 64
    fields = {
        "StorePath": f"/nix/store/{hash_part_of(seed)}-{seed}",
        "URL": f"nar/{nar}.nar.zst",
        "Compression": "zstd",
        "NarHash": f"sha256:{'0' * 52}",
        "NarSize": "120",
        "References": "",
        **changes,
    }
    return "".join(f"{key}: {value}\n" for key, value in fields.items() if value or key == "References")


@pytest.mark.parametrize(
    "index",
    [
        {"manifests": []},
        {"manifests": [], "annotations": {**FORMAT, "dev.nixcache.format": "3"}},
        {"manifests": [], "annotations": {**FORMAT, "dev.nixcache.watermark": "yesterday"}},
        {"manifests": "all", "annotations": FORMAT},
        {"manifests": [{}], "annotations": FORMAT},
        {
            "manifests": [
                {"mediaType": media_type.IMAGE_MANIFEST, "digest": f"sha256:{'0' * 64}", "size": 1}
            ],
            "annotations": FORMAT,
        },
    ],
)
def test_a_malformed_index_is_an_error_and_nothing_is_lost(tmp_path: Path, index: dict[str, object]) -> None:
    """It is never taken for an empty one; a start later finds what was saved."""
    run(tmp_path / "cache", publish_good)
    settings = {"NIXCACHE_REGISTRY": f"oci:{tmp_path}/cache"}
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        run(tmp_path / "cache", lambda layout: put_index(layout, index))
        answer = proxy.ask("/_refresh", method="POST")
        assert (answer.status, json.loads(answer.body)) == (502, {"refreshed": False, "entries": 1})
        assert proxy.status()["index"]["last_error"]
        assert proxy.ask(f"/{hash_part_of('good')}.narinfo").status == 200
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        assert proxy.ask(f"/{hash_part_of('good')}.narinfo").status == 200


async def publish_good(layout: Layout) -> None:
    await publish(layout, [store_object("good")])


@pytest.mark.parametrize(
    "table",
    [
        b"",
        b"not zstd",
        zstandard.compress(b""),
        zstandard.compress(b"not a table\n"),
        zstandard.compress(HEADER.replace("2\n", "3\n", 1).encode()),
        zstandard.compress(bytes(65 * 1024 * 1024)),
        table_of(narinfo_of("bad"))[:-5],
        table_of(*sorted((narinfo_of("bad"), narinfo_of("other")), reverse=True)),
    ],
)
def test_a_malformed_table_is_damage_and_nothing_else_is_lost(tmp_path: Path, table: bytes) -> None:
    """It is shown; the other segments are served."""
    run(tmp_path / "cache", publish_good)
    run(tmp_path / "cache", lambda layout: put_table(layout, table))
    with ProxyProcess(tmp_path / "proxy", NIXCACHE_REGISTRY=f"oci:{tmp_path}/cache") as proxy:
        status = proxy.wait_ready()
        assert len(status["index"]["damaged_tables"]) == 1
        assert proxy.ask(f"/{hash_part_of('good')}.narinfo").status == 200
        assert proxy.ask(f"/{hash_part_of('bad')}.narinfo").status == 404
        assert "Traceback" not in proxy.log


BAD_FIELDS: tuple[dict[str, str], ...] = (
    {"NarHash": ""},
    {"NarHash": "sha256:short"},
    {"NarSize": "0"},
    {"NarSize": "-1"},
    {"Compression": "magic"},
    {"URL": ""},
    {"URL": "../../etc/passwd"},
    {"URL": "http://evil.example/x.nar"},
    {"URL": "nar/x.nar"},
    {"References": "not a base name"},
    {"Deriver": "\x01"},
)


def test_a_malformed_narinfo_is_a_miss(tmp_path: Path) -> None:
    """Nix would end a build over it, where it goes on at a miss; its neighbours are served."""
    seeds = {str(number): changes for number, changes in enumerate(BAD_FIELDS)}
    seeds["nameless"] = {"StorePath": f"/nix/store/{hash_part_of('nameless')}-"}
    stanzas = sorted(narinfo_of(seed, **changes) for seed, changes in {**seeds, "neighbour": {}}.items())
    run(tmp_path / "cache", lambda layout: put_table(layout, table_of(*stanzas)))
    with ProxyProcess(tmp_path / "proxy", NIXCACHE_REGISTRY=f"oci:{tmp_path}/cache") as proxy:
        assert proxy.wait_ready()["entries"] == len(stanzas)
        for seed, changes in seeds.items():
            assert proxy.ask(f"/{hash_part_of(seed)}.narinfo").status == 404, changes
        assert proxy.ask(f"/{hash_part_of('neighbour')}.narinfo").status == 200
        assert proxy.status()["counters"]["misses"] == len(seeds)
