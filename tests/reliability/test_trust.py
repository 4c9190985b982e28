"""Who is believed: keys that are configured, an index that goes back, a recorded key that changes."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci import media_type
from nixcache_oci.oci.manifest import parse_media_type
from tests.reliability.caches import NAME
from tests.reliability.results import Cell, write_suite
from tests.support.journey import push_with, put, settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import CREATED, StoreObject, publish, publish_version1
from tests.support.registries import Ghcr

HOUR = timedelta(hours=1)
PLANNED = 8  # tests below that count


@pytest.fixture(scope="module")
def results() -> Iterator[list[Cell]]:
    cells: list[Cell] = []
    yield cells
    what = (
        "A registry that holds what no listed key signed, shows an older index, or records another key. The"
        " proxy is a process of its own."
    )
    write_suite(30, "Trust", what, PLANNED, cells)


def status_of(proxy: ProxyProcess, seed: str) -> int:
    return proxy.ask(f"/{hash_part_of(seed)}.narinfo").status


def forged(key: SecretKey) -> StoreObject:
    """An object whose signature is that of other bytes."""
    signed = store_object("forged").signed(key)
    return replace(signed, narinfo=replace(signed.narinfo, nar_hash=NixHash(bytes(32))))


@pytest.mark.parametrize("version", [1, 2])
def test_only_what_a_listed_key_signed_is_served(
    ghcr: Ghcr, key: SecretKey, tmp_path: Path, version: int, results: list[Cell]
) -> None:
    """Unsigned, signed by another key, or with a signature of something else: 404, in both formats."""
    stranger = SecretKey.generate("stranger-1")
    impostor = SecretKey.generate(key.public_key.name)
    objects = [
        store_object("good").signed(key),
        store_object("both").signed(stranger, key),
        store_object("unsigned"),
        store_object("other").signed(stranger),
        store_object("named").signed(impostor),
        forged(key),
    ]
    if version == 2:
        put(ghcr, objects)
    else:
        push_with(ghcr, lambda client: publish_version1(client, objects))
    keys = str(key.public_key)
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path), NIXCACHE_PUBLIC_KEYS=keys) as proxy:
        assert proxy.wait_ready()["entries"] == len(objects)
        served = [seed for seed in ("good", "both") if status_of(proxy, seed) == 200]
        refused = ("unsigned", "other", "named", "forged")
        assert served == ["good", "both"]
        assert [status_of(proxy, seed) for seed in refused] == [404] * len(refused)
        assert proxy.ask("/public-key").body.decode() == f"{keys}\n"
    outcome = "served; 404 for unsigned, another key, a key of the same name, a signature of other bytes"
    results.append(Cell(f"entries of format {version}, with `NIXCACHE_PUBLIC_KEYS`", len(objects), outcome))


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("loses", ["index and tag", "everything"])
def test_an_index_that_goes_back_is_noticed(
    ghcr: Ghcr, tmp_path: Path, *, is_restarted: bool, loses: str, results: list[Cell]
) -> None:
    """It is in /_status, in /metrics and once in the log, also where the proxy did not run meanwhile.

    It is over when all is there again.
    """
    put(ghcr, [store_object("first")])
    former = ghcr.server.manifests(NAME)[ghcr.server.tags(NAME)["cache-index"]]
    segment_tags: list[str] = []

    async def publish_second(client: Repository) -> None:
        segment = await publish(client, [store_object("second")], created=CREATED + HOUR)
        segment_tags.append(str(segment.tag))

    def go_back() -> None:
        lost = segment_tags if loses != "everything" else list(ghcr.server.tags(NAME))
        for tag in lost:
            ghcr.server.delete_manifest(NAME, tag)
        if loses != "everything":
            ghcr.server.put_manifest(NAME, "cache-index", former, media_type.IMAGE_INDEX)

    push_with(ghcr, publish_second)
    tags, manifests = ghcr.server.tags(NAME), ghcr.server.manifests(NAME)
    told = settings_of(ghcr, tmp_path)
    with ProxyProcess(tmp_path / "proxy", **told) as proxy:
        index = wait_saved(proxy)["index"]
        assert (index["regression"], index["newest_segment"]) == (None, "2026-11-21T04:15:00Z")
        if not is_restarted:
            go_back()
            proxy.refresh()
            proxy.refresh()
            assert_noticed(proxy, segment_tags[0])
            for tag, digest in tags.items():
                ghcr.server.put_manifest(NAME, tag, manifests[digest], parse_media_type(manifests[digest]))
            proxy.refresh()
            assert proxy.status()["index"]["regression"] is None
    if is_restarted:
        go_back()
        with ProxyProcess(tmp_path / "proxy", **told) as proxy:
            wait_saved(proxy)
            assert_noticed(proxy, segment_tags[0])
    when = "while the proxy did not run" if is_restarted else "while the proxy ran"
    results.append(Cell(f"{loses} gone, {when}", 1, "noticed: `/_status`, `/metrics`, one line in the log"))


def wait_saved(proxy: ProxyProcess) -> dict[str, Any]:
    """Wait until a look at the registry is over, and on disk."""
    return proxy.wait_until(lambda status: status["index"]["age_seconds"] is not None)


def assert_noticed(proxy: ProxyProcess, missing: str) -> None:
    regression = proxy.status()["index"]["regression"]
    assert regression["newest_segment_seen"] == "2026-11-21T04:15:00Z"
    assert missing in regression["missing_segments"]
    assert b"nixcache_index_regressions_total 1.0" in proxy.ask("/metrics").body
    assert proxy.log.count("the registry shows an older state of the cache than before") == 1


def test_a_recorded_key_that_changes_is_flagged_and_not_followed(
    ghcr: Ghcr, key: SecretKey, tmp_path: Path, results: list[Cell]
) -> None:
    """The first one stays, over a restart too; whoever reads the status or the log learns of the other."""
    put(ghcr, [store_object("first")], [key])
    told = settings_of(ghcr, tmp_path)
    other = SecretKey.generate("other-1")
    with ProxyProcess(tmp_path / "proxy", **told) as proxy:
        assert proxy.wait_ready()["public_keys"]["changed"] is False

        async def publish_second(client: Repository) -> None:
            second = store_object("second").signed(other)
            await publish(client, [second], keys=[other], created=CREATED + HOUR)

        push_with(ghcr, publish_second)
        proxy.refresh()
        assert_kept(proxy, key, other)
    with ProxyProcess(tmp_path / "proxy", **told) as proxy:
        proxy.wait_ready()
        assert_kept(proxy, key, other)
    results.append(Cell("another recorded key, then a restart", 2, "flagged, and not followed"))


def assert_kept(proxy: ProxyProcess, first: SecretKey, other: SecretKey) -> None:
    keys = proxy.status()["public_keys"]
    assert (keys["recorded"], keys["changed"]) == (str(first.public_key), True)
    assert keys["recorded_others"] == [str(other.public_key)]
    assert proxy.ask("/public-key").body.decode() == f"{first.public_key}\n"
    assert "another public key" in proxy.log


def test_the_index_age_is_shown(ghcr: Ghcr, tmp_path: Path, results: list[Cell]) -> None:
    """A registry that freezes the cache shows nothing new: the newest segment's age is all that tells."""
    put(ghcr, [store_object("first")])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        index = wait_saved(proxy)["index"]
        assert index["age_seconds"] >= 0
        assert index["newest_segment"] == "2026-11-21T03:15:00Z"
    results.append(Cell("the index's age and its newest segment", 1, "shown by `/_status`"))
