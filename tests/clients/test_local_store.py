from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.path_info import PathInfo
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import StoreError, UsageError
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.nar_files import dump
from nixcache_oci.nix.signature import PublicKey, is_signed_by
from nixcache_oci.nix.store_path import StorePath
from tests.clients.nix_story import NixStory

pytestmark = pytest.mark.needs("nix", "nix-store", "nix-build", "nix-instantiate")

_ABSENT = "00000000000000000000000000000000-absent"


def _check_order(infos: list[PathInfo]) -> None:
    seen: set[str] = set()
    for info in infos:
        seen.add(info.store_path.base_name)
        assert seen.issuperset(set(info.references) & {one.store_path.base_name for one in infos})


async def test_closure(story: NixStory) -> None:
    """A closure is all that its roots reach, references first, with what a narinfo needs; quietly."""
    paths = story.sandbox.build_paths(12)
    store = await LocalStore.open(story.nix())
    infos = await store.closure([paths[11]])
    told = story.sandbox.path_info([paths[11]], recursive=True)
    assert {str(info.store_path) for info in infos} == set(told)
    _check_order(infos)
    for info in infos:
        nar = b"".join(dump(store.real_path(info.store_path)))
        assert len(nar) == info.nar_size
        assert info.deriver is not None
    assert story.lines == []


async def test_infos_alone(story: NixStory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was named is described, once; what does not fit on a command line, in parts, and in order."""
    monkeypatch.setattr("nixcache_oci.clients.local_store.store._MOST_ARGUMENTS", 4)
    paths = story.sandbox.build_paths(10)
    store = await LocalStore.open(story.nix())
    infos = await store.infos([*reversed(paths[1:]), Path(paths[5]), StorePath.parse(paths[6])])
    assert sorted(str(info.store_path) for info in infos) == sorted(paths[1:])
    _check_order(infos)
    assert await (await LocalStore.open(story.old_nix())).infos(reversed(paths[1:])) == infos
    assert await store.infos([]) == []


async def test_signatures_and_content_addresses(story: NixStory) -> None:
    """Who signed a path decides whether it is published, and a content address is published with it."""
    path = story.sandbox.build_file("hello", b"hello\n")
    secret, public = story.sandbox.generate_key("cache.example.org-1")
    story.sandbox.sign([path], secret)
    added = story.sandbox.add_path(story.write("source/file", "content"))
    store = await LocalStore.open(story.nix())
    signed, addressed = await store.infos([path, added])
    assert is_signed_by(signed, [PublicKey.parse(public)])
    assert is_content_addressed(addressed)


async def test_links(story: NixStory) -> None:
    """./result, and a file inside an object, mean the object."""
    path = story.sandbox.build_file("hello", b"hello\n")
    (story.folder / "result").symlink_to(path)
    store = await LocalStore.open(story.nix())
    assert [str(found) for found in await store.resolve([story.folder / "result", f"{path}/x"])] == [path]
    (info,) = await store.closure([story.folder / "result"])
    assert str(info.store_path) == path
    with pytest.raises(UsageError, match="not in the store"):
        await store.closure([path, story.folder])


async def test_a_derivation_is_itself(story: NixStory) -> None:
    """Older versions take the path of a derivation for its outputs; what is pushed is what was named."""
    path = story.sandbox.build_paths(1)[0]
    deriver = story.sandbox.run("nix-store", "-q", "--deriver", path).check().stdout.strip()
    store = await LocalStore.open(story.nix())
    assert [str(info.store_path) for info in await store.infos([deriver])] == [deriver]
    both = {str(info.store_path) for info in await store.closure([deriver, path])}
    assert both >= {deriver, path}


@pytest.mark.parametrize("is_old", [False, True])
async def test_a_path_that_is_not_valid(story: NixStory, is_old: bool) -> None:
    """It is named among those that are, with the remedy."""
    path = story.sandbox.build_file("hello", b"hello\n")
    store = await LocalStore.open(story.old_nix() if is_old else story.nix())
    absent = f"{store.store_dir}/{_ABSENT}"
    message = rf"^{absent}: is not valid in this store; build or fetch it first, .*--realise {absent}$"
    with pytest.raises(StoreError, match=message):
        await store.closure([path, absent])
    with pytest.raises(StoreError, match=message):
        await store.infos([path, absent])
    with pytest.raises(StoreError, match=message):
        await store.verify_exists([StorePath.parse(absent), StorePath.parse(path)])
    await store.verify_exists([StorePath.parse(path)])


async def test_without_todays_commands(story: NixStory) -> None:
    """With nothing but nix-store, the closure is the same; signatures and content addresses are not told."""
    paths = story.sandbox.build_paths(8)
    new = await (await LocalStore.open(story.nix())).closure([paths[7]])
    store = await LocalStore.open(story.old_nix())
    assert store.store_dir == story.sandbox.store_dir
    old = await store.closure([paths[7]])
    assert old == new
    assert [str(info.store_path) for info in await store.infos([paths[7]])] == [paths[7]]


@pytest.mark.parametrize("way", ["variable", "variable, old Nix", "option"])
async def test_chroot_store(tmp_path: Path, way: str) -> None:
    """Its paths begin with /nix/store, and its files are read where they are, whatever names it."""
    story = NixStory(tmp_path, is_chroot=True)
    path = story.sandbox.build_file("hello", b"hello\n")
    nix = story.old_nix() if "old" in way else story.nix()
    if way == "option":
        nix = story.nix([("store", str(story.sandbox.root))], NIX_REMOTE="")
    store = await LocalStore.open(nix)
    assert store.store_dir == "/nix/store"
    (info,) = await store.closure([path])
    assert store.real_path(info.store_path) == story.sandbox.physical(path)
    assert store.real_path(info.store_path).read_bytes() == b"hello\n"


async def test_a_store_on_another_machine(story: NixStory) -> None:
    """NARs are read from files, so that is refused before anything is planned."""
    with pytest.raises(UsageError, match="not on this machine"):
        await LocalStore.open(story.nix(NIX_REMOTE=f"file://{story.folder}/cache"))
