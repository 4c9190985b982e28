"""Finding what is wrong with a cache, by name, and nothing where nothing is."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.publish import StoreObject, publish, publish_version1

KEY = SecretKey.generate("verify-1")
BASE = store_object("base")
TOP = store_object("top", references=(BASE.narinfo.store_path.base_name,))
LARGE = store_object("large", contents=bytes(range(256)) * 4000)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIXCACHE_REGISTRY", f"oci:{tmp_path / 'cache'}")
    monkeypatch.setenv("NIXCACHE_INDEX_DIR", str(tmp_path / "index"))
    monkeypatch.setenv("NIXCACHE_UPSTREAM", "")
    return tmp_path / "cache"


def put(
    folder: Path, *objects: StoreObject, keys: tuple[SecretKey, ...] = (KEY,), in_packs: bool = True
) -> None:
    async def run() -> None:
        repository = Layout(folder)
        signed = [one.signed(*keys) for one in objects]
        await publish(repository, signed, keys=[KEY], in_packs=in_packs)
        await repository.close()

    asyncio.run(run())


def problems(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """What ``verify`` finds, by store path."""
    capsys.readouterr()
    status = main(["verify", "--json", *arguments])
    found = json.loads(capsys.readouterr().out)["problems"]
    assert status == (FAILED if found else DONE)
    return {problem["path"]: problem["what"] for problem in found}


def blob_of(one: StoreObject) -> Digest:
    return NarUrl.parse(one.compressed()[0].url).blob


def path_of(one: StoreObject) -> str:
    return str(one.narinfo.store_path)


@pytest.mark.parametrize("arguments", [(), ("--content",)])
@pytest.mark.parametrize("in_packs", [True, False])
def test_a_healthy_cache(
    settings: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], *, in_packs: bool
) -> None:
    """Nothing is found, in packs and in blobs of their own, and in a version 1 cache."""
    put(settings, BASE, TOP, LARGE, in_packs=in_packs)
    assert problems(capsys, *arguments) == {}
    assert main(["verify", *arguments]) == DONE
    assert "0 problems" in capsys.readouterr().err


def test_a_healthy_version1_cache(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blobs are in no manifest, and are there all the same."""

    async def run() -> None:
        repository = Layout(settings)
        await publish_version1(repository, [BASE.signed(KEY)], public_key=str(KEY.public_key))
        await repository.close()

    asyncio.run(run())
    assert problems(capsys, "--content") == {}


def test_a_missing_blob(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every path that lies in it is named, and no other."""
    put(settings, BASE, TOP, LARGE, in_packs=False)
    (settings / "blobs" / "sha256" / blob_of(TOP).hex).unlink()
    expected = {path_of(TOP): f"blob {blob_of(TOP)} is missing"}
    assert problems(capsys) == expected
    assert problems(capsys, "--content") == expected


@pytest.mark.parametrize("in_packs", [True, False])
def test_a_flipped_byte(settings: Path, capsys: pytest.CaptureFixture[str], *, in_packs: bool) -> None:
    """Only who reads every byte finds it."""
    put(settings, LARGE, in_packs=in_packs)
    (blob,) = (
        path
        for path in (settings / "blobs" / "sha256").iterdir()
        if LARGE.compressed()[1] in path.read_bytes()
    )
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    assert problems(capsys) == {}
    assert list(problems(capsys, "--content")) == [path_of(LARGE)]


def test_a_cut_pack(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pack that is shorter than its slices is found by its size."""
    put(settings, BASE, TOP)
    (blob,) = (
        path
        for path in (settings / "blobs" / "sha256").iterdir()
        if BASE.compressed()[1] in path.read_bytes()
    )
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert len(problems(capsys)) == 1


def test_a_bad_signature(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Signed by nobody whom the cache records, or whom the user trusts."""
    put(settings, BASE, keys=(SecretKey.generate(KEY.name),))
    assert problems(capsys) == {path_of(BASE): "no known key signed it"}


def test_a_dangling_reference(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither listed nor upstream: a client would have to build it."""
    put(settings, TOP)
    base = BASE.narinfo.store_path.base_name
    assert problems(capsys) == {path_of(TOP): f"it refers to {base}, which is neither here nor upstream"}


def damage_hash(one: StoreObject) -> StoreObject:
    return replace(one, narinfo=replace(one.narinfo, nar_hash=NixHash(bytes(32))))


def damage_size(one: StoreObject) -> StoreObject:
    return replace(one, narinfo=replace(one.narinfo, nar_size=one.narinfo.nar_size + 1))


@pytest.mark.parametrize("damage", [damage_hash, damage_size])
def test_a_nar_that_is_another(
    settings: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[StoreObject], StoreObject]
) -> None:
    """The bytes are whole, and not those that the narinfo vouches for."""
    put(settings, damage(BASE))
    assert problems(capsys) == {}
    assert "its NAR is not what NarHash says" in problems(capsys, "--content")[path_of(BASE)]
