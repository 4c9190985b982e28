"""Finding what is wrong with a cache, by name, and nothing where nothing is."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache import listing
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.listing import Union, read_union
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED, WRONG_USAGE
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.cli.cache_story import publish_text, run_json, write_layout
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject, publish, publish_version1

KEY = SecretKey.generate("verify-1")
BASE = store_object("base")
TOP = store_object("top", references=(BASE.narinfo.store_path.base_name,))
LARGE = store_object("large", contents=bytes(range(256)) * 4000)


@pytest.fixture
def settings(layout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIXCACHE_UPSTREAM", "")
    return layout


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


@pytest.mark.parametrize("days", [-1, 0, 1])
def test_a_path_is_judged_by_what_clients_get(
    settings: Path, capsys: pytest.CaptureFixture[str], days: int
) -> None:
    """Signed after it was published, it is well, and counts as unsigned no more; whatever the clocks say."""

    async def story(repository: Repository) -> None:
        await publish(repository, [BASE.signed(), LARGE.signed()], keys=[KEY])
        await publish(repository, [BASE.signed(KEY)], keys=[KEY], created=CREATED + timedelta(days=days))

    write_layout(settings, story)
    assert problems(capsys) == {path_of(LARGE): "no known key signed it"}
    main(["verify", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["unsigned"], found["foreignSigned"]) == (1, 0)
    (listed,) = run_json(capsys, "info", path_of(BASE))["paths"]
    assert listed["signedBy"] == [KEY.name]


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
    assert "its NAR does not match NarHash" in problems(capsys, "--content")[path_of(BASE)]


# What one narinfo or record of a table looks like when it is damaged.
GOOD_RECORD = "Pin: release-1.0 {path} 2026-11-21T03:15:00Z forever\n"


def damaged_table(*stanzas: str) -> str:
    return "\n".join(["Nixcache-Table: 2\nCreated: 2026-11-21T03:15:00Z\n", *stanzas])


def text_of(one: StoreObject) -> str:
    return one.compressed()[0].render()


async def push_blob_of(repository: Repository, one: StoreObject) -> None:
    narinfo, content = one.compressed()
    await repository.push_blob(NarUrl.parse(narinfo.url).blob, content)


def put_text(folder: Path, text: str, *objects: StoreObject) -> None:
    """Publish a table as it is, with the blobs of some objects, and none of them in a layer."""

    async def run(repository: Repository) -> None:
        for one in objects:
            await push_blob_of(repository, one)
        await list_segments(repository, [await publish_text(repository, text, CREATED)])

    write_layout(folder, run)


def repair(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = DONE) -> str:
    """Run a repair; gives what it prints."""
    capsys.readouterr()
    assert main(["verify", "--repair", *arguments]) == status
    return capsys.readouterr().out


def listed(capsys: pytest.CaptureFixture[str]) -> set[str]:
    return {one["path"] for one in run_json(capsys, "list")["paths"]}


def assert_gc_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--dry-run"]) == DONE
    capsys.readouterr()


def test_a_malformed_entry(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is served to nobody, and gc stops at it: a repair leaves it out, and keeps all else."""
    bad = text_of(TOP).replace("NarSize: ", "NarSize: -")
    record = GOOD_RECORD.format(path=path_of(BASE))
    put_text(settings, damaged_table(record, *sorted([text_of(BASE), bad])), BASE)
    assert main(["gc", "--dry-run"]) != DONE
    found = problems(capsys)
    assert "its narinfo cannot be read" in found[path_of(TOP)]
    assert "left out of segment-20261121t031500z-" in repair(capsys)
    assert problems(capsys, "--content") == {}
    assert listed(capsys) == {path_of(BASE)}
    assert "release-1.0" in run_json(capsys, "pin", "list")["pins"][0]["name"]
    assert_gc_goes_on(capsys)


def test_a_malformed_record(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One bad line costs one record; it is named."""
    records = [GOOD_RECORD.format(path=path_of(BASE)), "Pin: release-2.0 nowhere at all\n"]
    put_text(settings, damaged_table(*records, text_of(BASE)), BASE)
    assert main(["verify"]) == FAILED
    assert "a record cannot be read" in capsys.readouterr().out
    assert "Pin: release-2.0 nowhere at all" in repair(capsys)
    assert [one["name"] for one in run_json(capsys, "pin", "list")["pins"]] == ["release-1.0"]
    assert problems(capsys, "--content") == {}
    assert_gc_goes_on(capsys)


def test_a_record_in_the_wrong_place(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Proxies do not see it, and gc does not run: verify says so, and a repair puts it where it belongs."""
    put_text(settings, damaged_table(text_of(BASE), GOOD_RECORD.format(path=path_of(BASE))), BASE)
    assert main(["gc", "--dry-run"]) != DONE
    (what,) = problems(capsys).values()
    assert "its table cannot be read as a whole" in what
    repair(capsys)
    assert problems(capsys, "--content") == {}
    assert run_json(capsys, "pin", "list")["pins"][0]["name"] == "release-1.0"
    assert_gc_goes_on(capsys)


def test_a_table_out_of_order(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It cannot be searched, but it can be read: it is written anew."""
    stanzas = sorted([text_of(BASE), text_of(LARGE)], reverse=True)
    put_text(settings, damaged_table(*stanzas), BASE, LARGE)
    assert len(problems(capsys)) == 1
    repair(capsys)
    assert listed(capsys) == {path_of(BASE), path_of(LARGE)}
    assert problems(capsys, "--content") == {}
    assert_gc_goes_on(capsys)


def test_a_nar_in_no_layer(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any registry's own collector may take it: its segment is written anew, with it."""
    put_text(settings, damaged_table(text_of(BASE)), BASE)
    (what,) = problems(capsys).values()
    assert "is in no layer of its manifest" in what
    repair(capsys)
    assert problems(capsys, "--content") == {}
    assert listed(capsys) == {path_of(BASE)}
    assert_gc_goes_on(capsys)


def test_a_lost_table_that_nobody_has(
    settings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its segment is unlisted, by force where that is most of the cache, and it is said what that means."""
    put(settings, BASE, TOP)
    lose_tables(settings)
    monkeypatch.setenv("NIXCACHE_INDEX_DIR", str(tmp_path / "another"))
    repair(capsys, status=FAILED)
    out = repair(capsys, "--force")
    assert "what it listed (2 paths) is unknown: publish again what you need" in out
    assert problems(capsys) == {}
    assert_gc_goes_on(capsys)


def test_a_lost_table_of_which_a_copy_is_here(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is written anew, and nothing is unlisted."""
    put(settings, BASE, TOP)
    assert listed(capsys) == {path_of(BASE), path_of(TOP)}
    lose_tables(settings)
    assert "its table, is missing" in str(problems(capsys))
    repair(capsys)
    assert problems(capsys, "--content") == {}
    assert listed(capsys) == {path_of(BASE), path_of(TOP)}
    assert_gc_goes_on(capsys)


def lose_tables(folder: Path) -> None:
    for path in (folder / "blobs" / "sha256").iterdir():
        if b"Nixcache-Table" in inflate(path.read_bytes()):
            path.unlink()


def inflate(content: bytes) -> bytes:
    try:
        return zstandard.ZstdDecompressor().decompressobj().decompress(content)
    except zstandard.ZstdError:
        return b""


def test_a_dry_run_writes_nothing(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says the same, and every file stays as it is."""
    put(settings, BASE, TOP, LARGE, in_packs=False)
    (settings / "blobs" / "sha256" / blob_of(TOP).hex).unlink()
    before = {path: path.read_bytes() for path in settings.rglob("*") if path.is_file()}
    dry = repair(capsys, "--dry-run", status=FAILED)
    assert {path: path.read_bytes() for path in settings.rglob("*") if path.is_file()} == before
    assert f"would be unlisted {path_of(TOP)}: blob " in dry
    assert dry.replace("would be ", "") == repair(capsys)
    assert listed(capsys) == {path_of(BASE), path_of(LARGE)}


def test_json_tells_what_was_done(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Problems found, what was sent and unlisted, and what is left."""
    put(settings, BASE, TOP, LARGE, in_packs=False)
    (settings / "blobs" / "sha256" / blob_of(TOP).hex).unlink()
    document = run_json(capsys, "verify", "--repair")
    (problem,) = document["problems"]
    assert (problem["path"], problem["kind"]) == (path_of(TOP), "missing")
    assert document["unlisted"].keys() == {path_of(TOP)}
    assert (document["restored"], document["left"]) == ([], [])


def test_over_half_is_left_alone(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a wrong key, everything looks forged; nothing is touched without force."""
    put(settings, BASE, TOP)
    stranger = str(SecretKey.generate("stranger-1").public_key)
    before = sorted(path.name for path in settings.rglob("*"))
    assert main(["verify", "--repair", "--public-keys", stranger]) == FAILED
    assert "2 of 2 paths would be unlisted" in capsys.readouterr().err
    assert sorted(path.name for path in settings.rglob("*")) == before


def test_a_version1_cache_is_published_to_first(settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its entries lie in no segment: a publish takes over those that have their bytes."""

    async def write(repository: Repository) -> None:
        await publish_version1(repository, [TOP])

    write_layout(settings, write)
    assert main(["verify", "--repair"]) == FAILED
    assert "publish to it" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--dry-run", "--force"])
def test_flags_that_only_a_repair_takes(
    settings: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    """Nobody is to believe that this run would have written anything."""
    put(settings, BASE)
    assert main(["verify", flag]) == WRONG_USAGE
    assert "go with --repair" in capsys.readouterr().err


def test_what_is_over_a_limit_is_told_and_nothing_is_mended(
    settings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not read may be as good as the rest, and may hold what seems to be missing."""
    put(settings, BASE)
    put(settings, TOP)
    monkeypatch.setattr(listing, "MAX_SEGMENTS", 1)
    left_out = "1 of 2 segments left out, the oldest: a cache is read up to"
    [(where, what)] = [item for item in problems(capsys).items() if item[0] == "cache-index"]
    assert what.startswith(left_out), where
    assert main(["verify", "--repair"]) == FAILED
    assert f"nothing was repaired: {left_out}" in capsys.readouterr().err
    for command in (["list"], ["doctor"]):
        assert main(command) == FAILED
        told = capsys.readouterr()
        assert left_out in told.err + told.out
    assert len(asyncio.run(read(settings)).index.segments) == 2


async def read(folder: Path) -> Union:
    return await read_union(Layout(folder))
