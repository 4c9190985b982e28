"""Looking into a cache: what it holds, what keeps it, and all that is known of one path."""

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.signature import SecretKey
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject, publish, publish_version1

KEY = SecretKey.generate("list-1")
BASE = store_object("base", contents=b"b" * 3000)
ELSEWHERE = store_object("elsewhere").narinfo.store_path.base_name
TOP = store_object("top", references=(BASE.narinfo.store_path.base_name, ELSEWHERE))
LATER = CREATED + timedelta(days=1)
ZSTD = bytes.fromhex("28b52ffd")


def record(run: str, *roots: tuple[str, StoreObject], failed: tuple[str, ...] = ()) -> PublishRecord:
    named = tuple((name, one.narinfo.store_path) for name, one in roots)
    time = CREATED if run == "1" else LATER
    return PublishRecord("main-x", run, time, named, failed)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An OCI layout, and the environment that names it."""
    monkeypatch.setenv("NIXCACHE_REGISTRY", f"oci:{tmp_path / 'cache'}")
    monkeypatch.setenv("NIXCACHE_INDEX_DIR", str(tmp_path / "index"))
    return tmp_path / "cache"


@pytest.fixture
def layout(settings: Path) -> Path:
    """A cache of two publishes: the second one's package fails."""
    asyncio.run(publish_twice(settings))
    return settings


async def publish_twice(folder: Path) -> None:
    repository = Layout(folder)
    objects = [one.signed(KEY) for one in (BASE, TOP)]
    first = record("1", ("packages.x.top", TOP), ("packages.x.base", BASE))
    await publish(repository, objects, keys=[KEY], records=[first])
    second = record("2", ("packages.x.base", BASE), failed=("packages.x.top", "packages.x.never"))
    await publish(repository, [], created=LATER, records=[second])
    await repository.close()


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json"]) == DONE
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("layout")
def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a path, by name, and what it is all together on standard error."""
    assert main(["list"]) == DONE
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines] == [
        BASE.narinfo.store_path.base_name,
        TOP.narinfo.store_path.base_name,
    ]
    assert "2026-11-21T03:15:00Z" in lines[0]
    assert "2 paths, " in shown.err
    assert "2 segments" in shown.err


@pytest.mark.usefixtures("layout")
def test_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs: sizes in bytes, and the whole path."""
    first, _ = run_json(capsys, "list")["paths"]
    assert first == {
        "path": str(BASE.narinfo.store_path),
        "narHash": str(BASE.narinfo.nar_hash),
        "narSize": BASE.narinfo.nar_size,
        "fileSize": BASE.compressed()[0].file_size,
        "compression": "zstd",
        "signedBy": ["list-1"],
        "published": "2026-11-21T03:15:00Z",
        "condemned": False,
    }


@pytest.mark.usefixtures("layout")
def test_list_roots(capsys: pytest.CaptureFixture[str]) -> None:
    """A root that fails keeps its last good path, and says since when; one that never built has none."""
    roots = {root["name"]: root for root in run_json(capsys, "list", "--roots")["roots"]}
    assert roots["packages.x.base"]["built"] == "2026-11-22T03:15:00Z"
    assert roots["packages.x.base"]["failed"] is None
    assert roots["packages.x.top"]["paths"] == [str(TOP.narinfo.store_path)]
    assert roots["packages.x.top"]["failed"] == "2026-11-22T03:15:00Z"
    assert (roots["packages.x.never"]["paths"], roots["packages.x.never"]["built"]) == ([], None)
    assert main(["list", "--roots"]) == DONE
    assert len(capsys.readouterr().out.splitlines()) == len(roots)


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize(
    "what",
    [
        str(TOP.narinfo.store_path),
        f"{TOP.narinfo.store_path}/bin/x",
        TOP.narinfo.store_path.base_name,
        TOP.narinfo.store_path.hash_part,
        "packages.x.top",
    ],
)
def test_info(capsys: pytest.CaptureFixture[str], what: str) -> None:
    """However it is named: signatures checked, bytes located, roots and closure told."""
    (info,) = run_json(capsys, "info", what)["paths"]
    assert info["path"] == str(TOP.narinfo.store_path)
    assert info["signatures"] == {"list-1": "good"}
    assert info["offset"] is not None
    assert [root["name"] for root in info["roots"]] == ["packages.x.top"]
    sizes = TOP.narinfo.nar_size + BASE.narinfo.nar_size
    assert (info["closure"]["paths"], info["closure"]["narSize"]) == (2, sizes)
    assert info["closure"]["elsewhere"] == 1
    assert main(["info", what]) == DONE
    text = capsys.readouterr().out
    assert text.startswith(f"StorePath: {TOP.narinfo.store_path}\n")
    assert "Signature of list-1: good" in text
    assert "1 more elsewhere" in text


@pytest.mark.usefixtures("layout")
def test_info_knows_the_keys_that_are_configured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those count, and not what the cache says of itself."""
    forged = SecretKey.generate(KEY.name)
    monkeypatch.setenv("NIXCACHE_PUBLIC_KEYS", str(forged.public_key))
    (info,) = run_json(capsys, "info", str(TOP.narinfo.store_path))["paths"]
    assert info["signatures"] == {"list-1": "wrong"}


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("packages.x.topp", "there is packages.x.top"),
        ("packages.x.never", "was never built"),
        (ELSEWHERE, "neither a store path nor a root"),
    ],
)
def test_info_of_what_is_not_there(capsys: pytest.CaptureFixture[str], what: str, words: str) -> None:
    """It says what was looked for, where, and what comes near."""
    assert main(["info", what]) == FAILED
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err


@pytest.mark.usefixtures("settings")
def test_an_empty_cache(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is listed, which is no failure, and is said."""
    assert main(["list"]) == DONE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "is empty" in shown.err


def test_a_version1_cache(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is looked into like any other; when it was published, nobody wrote down."""

    async def put() -> None:
        repository = Layout(settings)
        await publish_version1(repository, [BASE.signed(KEY)], public_key=str(KEY.public_key))
        await repository.close()

    asyncio.run(put())
    (listed,) = run_json(capsys, "list")["paths"]
    assert (listed["path"], listed["published"]) == (str(BASE.narinfo.store_path), None)
    (info,) = run_json(capsys, "info", str(BASE.narinfo.store_path))["paths"]
    assert (info["segments"], info["signatures"]) == (["version 1"], {"list-1": "good"})


def test_damage_is_named(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What can be read is listed all the same, and the exit status tells."""
    assert main(["list", "--roots", "--json"]) == DONE
    capsys.readouterr()
    damaged = 0
    for blob in (layout / "blobs" / "sha256").iterdir():
        content = blob.read_bytes()
        if content.startswith(ZSTD) and b"2026-11-22" in zstandard.ZstdDecompressor().decompress(content):
            blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            damaged += 1
    assert damaged == 1
    assert main(["list", "--index-dir", str(layout.parent / "another"), "--json"]) == FAILED
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["paths"]) == 2
    assert "segment-20261122T031500Z" in shown.err
    assert "cannot be read" in shown.err
