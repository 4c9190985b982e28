"""Which NAR of a closure comes first, as far as its narinfos tell."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import BlobStream
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.packs import prefetch
from nixcache_oci.proxy.packs.prefetch import first_of_closure
from tests.support.front import make_bench, read_index
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish


def base_name_of(seed: str) -> str:
    return f"{hash_part_of(seed)}-object-{seed}"


async def catalog_of(folder: Path, references: Mapping[str, str]) -> Catalog:
    """Publish objects that refer to others, each named by one letter, and read what was published."""
    objects = [
        store_object(seed, references=tuple(map(base_name_of, letters)))
        for seed, letters in references.items()
    ]
    await publish(Layout(folder / "cache"), objects)
    catalog = (await read_index(folder)).catalog
    assert catalog is not None
    return catalog


@pytest.mark.parametrize(
    ("references", "first"),
    [
        ({"r": ""}, "r"),
        ({"r": "r"}, "r"),
        ({"r": "xyz"}, "r"),
        ({"r": "cba", "a": "", "b": "", "c": ""}, "a"),
        ({"r": "cbaz", "b": "", "c": ""}, "b"),
        ({"r": "rab", "a": "ac", "b": "", "c": "d", "d": "d"}, "d"),
    ],
)
async def test_references_are_followed_by_name(
    tmp_path: Path, references: Mapping[str, str], first: str
) -> None:
    """Past those that another cache has, and past what refers to itself."""
    catalog = await catalog_of(tmp_path, references)
    found = first_of_closure(catalog.find(hash_part_of("r")) or b"", catalog)
    assert base_name_of(first).encode() in found.splitlines()[0]


async def test_look_ups_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """References may lead in a circle, which no store does and any table may; or there are thousands."""
    catalog = await catalog_of(tmp_path, {"r": "abcx", "x": "y", "y": "x", "s": "x"})
    asked: list[HashPart] = []
    find = Catalog.find

    def note(catalog: Catalog, hash_part: HashPart, most_bytes: int) -> bytes | None:
        asked.append(hash_part)
        return find(catalog, hash_part, most_bytes)

    monkeypatch.setattr(Catalog, "find", note)
    for seed in "rs":
        asked.clear()
        narinfo = find(catalog, hash_part_of(seed))
        assert narinfo is not None
        assert first_of_closure(narinfo, catalog)
        assert len(asked) == 32


async def test_the_root_has_the_first_pack_fetched_before_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But only where a closure begins: the narinfos behind it come in a moment, and each has its own."""
    for seed, letters in {"a": "", "b": "", "r": "ba"}.items():
        narinfo = store_object(seed, references=tuple(map(base_name_of, letters)))
        await publish(Layout(tmp_path / "cache"), [narinfo])
    fetched: list[str] = []
    open_blob = Layout.open_blob

    def note(layout: Layout, digest: Digest, *extent: int) -> AbstractAsyncContextManager[BlobStream]:
        fetched.append(digest.hex)
        return open_blob(layout, digest, *extent)

    async with make_bench(tmp_path) as bench, bench.connect() as client:
        monkeypatch.setattr(Layout, "open_blob", note)
        for seed in "rb":
            target = f"/{hash_part_of(seed)}.narinfo"
            await client.send(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await client.settle()
        catalog = bench.cache.index.catalog
        assert catalog is not None
        narinfos = [catalog.find(hash_part_of(seed)) or b"" for seed in "arb"]
    assert fetched == [NarUrl.parse(NarInfo.parse(narinfo).url).blob.hex for narinfo in narinfos]


async def test_a_large_narinfo_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 references take 15 ms to sort, at each step; and validating what is large may wait."""
    catalog = await catalog_of(tmp_path, {"r": "a", "a": ""})
    narinfo = catalog.find(hash_part_of("r")) or b""
    assert base_name_of("a").encode() in first_of_closure(narinfo, catalog).splitlines()[0]
    monkeypatch.setattr(prefetch, "_MOST_BYTES", len(narinfo) - 1)
    assert first_of_closure(narinfo, catalog) == narinfo
    catalog.tables[0].file.verdicts[:] = bytes(2)
    monkeypatch.setattr(prefetch, "_MOST_BYTES", len(narinfo))
    assert base_name_of("a").encode() in first_of_closure(narinfo, catalog).splitlines()[0]
