"""An import checks everything that strangers wrote: what is wrong is named, and never sent or signed."""

import bz2
import hashlib
import lzma
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zstandard
from aiohttp import web

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.binary_cache.folder import FolderCache
from nixcache_oci.clients.binary_cache.source import BinaryCache
from nixcache_oci.clients.binary_cache.web import WebCache
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.resume import read_blob
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import Error, NotFoundError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import File, dump_tree, token, words
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, SecretKey, fingerprint, is_signed_by
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.publisher import import_staging
from nixcache_oci.publisher.draft import Published
from nixcache_oci.publisher.import_candidates import read_candidates
from nixcache_oci.publisher.importer import Importer, ImportPlan
from nixcache_oci.publisher.options import PublishOptions
from tests.support.objects import store_object
from tests.support.publish import CREATED
from tests.support.told import Told
from tests.support.upstream_server import answering, serve

MIB = 1024 * 1024
KEY = SecretKey.generate("ours-1")
THEIRS = SecretKey.generate("theirs-1")
UPSTREAM = frozenset({"upstream-1"})
_FILE = words("(", "type", "regular", "contents") + token(b"abc") + words(")")


def compress(nar: bytes, compression: str) -> bytes:
    match compression:
        case "zstd":
            return zstandard.ZstdCompressor().compress(nar)
        case "xz":
            return lzma.compress(nar, preset=1)
        case "bzip2":
            return bz2.compress(nar)
    return nar


def hash_of(content: bytes) -> NixHash:
    return NixHash(hashlib.sha256(content).digest())


def directory(*names: bytes) -> bytes:
    entries = (
        words("entry", "(", "name") + token(name) + words("node") + _FILE + words(")") for name in names
    )
    return words("nix-archive-1", "(", "type", "directory") + b"".join(entries) + words(")")


class ImportStory:
    """A binary cache in a folder, and the repository that it is imported into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = folder / "source"
        (self.source / "nar").mkdir(parents=True)
        self.repository = Layout(folder / "cache")
        self.told = Told()

    def put(
        self,
        seed: str,
        nar: bytes | None = None,
        compression: str = "zstd",
        *,
        references: Sequence[NarInfo] = (),
        keys: Sequence[SecretKey] = (THEIRS,),
        **changes: Any,  # noqa: ANN401  fields of the narinfo
    ) -> NarInfo:
        nar = b"".join(dump_tree(File(seed.encode() * 100))) if nar is None else nar
        content = changes.pop("content", compress(nar, compression))
        narinfo = replace(
            store_object(seed).narinfo,
            url=f"nar/{seed}.nar.{compression}",
            compression=compression,
            nar_hash=hash_of(nar),
            nar_size=len(nar),
            file_hash=hash_of(content),
            file_size=len(content),
            references=tuple(one.store_path.base_name for one in references),
        )
        narinfo = replace(narinfo, sigs=tuple(key.sign(fingerprint(narinfo)) for key in keys))
        narinfo = replace(narinfo, **changes)
        (self.source / f"nar/{seed}.nar.{compression}").write_bytes(content)
        (self.source / f"{narinfo.store_path.hash_part}.narinfo").write_text(narinfo.render())
        return narinfo

    async def run(
        self,
        keys: Sequence[SecretKey] = (),
        public_keys: Sequence[PublicKey] = (),
        wanted: Sequence[NarInfo] = (),
        source: BinaryCache | None = None,
        upstream: str | None = None,
    ) -> tuple[ImportPlan, Published]:
        source = source or FolderCache(self.source)
        self.told = Told()
        upstreams = Upstreams([parse_upstream(upstream)] if upstream else [])
        index = IndexFolder(self.folder / "index", "test")
        options = PublishOptions(keys=tuple(keys), upstream_key_names=UPSTREAM)
        importer = Importer(self.repository, source, index, upstreams, options, self.told)
        paths = [narinfo.store_path for narinfo in wanted]
        try:
            candidates = await read_candidates(source, paths, "/nix/store", public_keys, UPSTREAM)
            plan = await importer.plan(candidates)
            return plan, await importer.take(plan, PublishRecord("import/test", "run", CREATED))
        finally:
            await upstreams.close()
            await source.close()

    async def read(self, narinfo: NarInfo) -> bytes:
        url = NarUrl.parse(narinfo.url)
        content = bytes(await read_blob(self.repository, url.blob, 16 * MIB))
        return content if url.offset is None else content[url.offset : url.offset + (url.length or 0)]


@pytest.fixture
def story(tmp_path: Path) -> ImportStory:
    return ImportStory(tmp_path)


@pytest.mark.parametrize("compression", ["zstd", "xz", "bzip2", "none", "br"])
async def test_bytes_and_signatures_stay_as_they_are(story: ImportStory, compression: str) -> None:
    """In a pack and alone; ours stands beside theirs only where the NAR could be unpacked."""
    large = b"".join(dump_tree(File(hashlib.shake_256(b"large").digest(5 * MIB))))
    told = [story.put("small", compression=compression), story.put("large", large, compression)]
    _, published = await story.run([KEY])
    assert not published.failed
    by_path = {narinfo.store_path: narinfo for narinfo in published.listed}
    for narinfo in told:
        listed = by_path[narinfo.store_path]
        assert await story.read(listed) == (story.source / narinfo.url).read_bytes()
        assert replace(listed, url=narinfo.url, sigs=narinfo.sigs) == narinfo
        assert listed.sigs[0] == narinfo.sigs[0]
        assert is_signed_by(listed, [KEY.public_key]) == (compression != "br")
    plan, again = await story.run([KEY])
    assert (len(plan.plan.cached), again.listed) == (2, ())


@pytest.mark.parametrize(
    ("nar", "words_of_error"),
    [
        (directory(b".."), "nothing in a directory can be named b'..'"),
        (directory(b"a/b"), "nothing in a directory can be named b'a/b'"),
        (directory(b"b", b"a"), "b'a' does not sort after b'b'"),
        (directory(b"a") + b"more", "something follows the end"),
        (words("nix-archive-1", "(", "type", "symlink", "target", "", ")"), "no link can point at b''"),
        (b"no NAR at all, but as long as one", "not in the form that Nix writes"),
    ],
)
async def test_a_hostile_nar_is_refused_with_all_its_hashes_right(
    story: ImportStory, nar: bytes, words_of_error: str
) -> None:
    """No client would unpack it; it is named, its referrer goes with it, and the rest is taken."""
    bad = story.put("bad", nar)
    referrer = story.put("referrer", references=[bad])
    good = story.put("good")
    _, published = await story.run([KEY])
    assert [one.store_path for one in published.listed] == [good.store_path]
    assert words_of_error in published.failed[bad.store_path.base_name]
    assert bad.store_path.base_name in published.failed[referrer.store_path.base_name]
    assert any(str(bad.store_path) in line for line in story.told.warnings)


@pytest.mark.parametrize("compression", ["zstd", "xz", "bzip2", "none"])
async def test_what_does_not_hold_what_it_says(story: ImportStory, compression: str) -> None:
    """Another file, another NAR, a bomb, a file that is longer than told, none at all: each is named."""
    nar = b"".join(dump_tree(File(bytes(64 * MIB))))
    bomb = compress(nar, compression) if compression != "none" else nar[:1000]
    told = {
        "flipped": story.put("flipped", compression=compression, file_hash=hash_of(b"another")),
        "other": story.put("other", compression=compression, nar_hash=hash_of(b"another"), keys=[KEY]),
        "short": story.put("short", compression=compression, nar_size=10_000),
        "bomb": story.put("bomb", compression=compression, content=bomb),
        "long": story.put("long", compression=compression, file_size=10),
        "garbage": story.put("garbage", compression=compression, content=b"garbage" * 9),
        "empty": story.put("empty", compression=compression, content=b"", file_size=None),
        "missing": story.put("missing", compression=compression, url="nar/nowhere"),
    }
    _, published = await story.run([KEY])
    assert published.listed == ()
    assert published.failed.keys() == {narinfo.store_path.base_name for narinfo in told.values()}
    for seed, reason in (("flipped", "FileHash"), ("other", "NarHash"), ("long", "larger than 10 bytes")):
        assert reason in published.failed[told[seed].store_path.base_name]


async def test_narinfos_that_lie(story: ImportStory) -> None:
    """Of another path, of another store, malformed, dangling, with nothing to check it by: all left out."""
    good = story.put("good")
    other = story.put("other")
    path = story.source / f"{other.store_path.hash_part}.narinfo"
    path.write_text(good.render())
    (story.source / "not-a-hash-part.narinfo").write_text(good.render())
    (story.source / f"{'1' * 32}.narinfo").write_text("StorePath: what\n")
    elsewhere = replace(good.store_path, store_dir="/elsewhere", name="elsewhere")
    story.put("elsewhere", store_path=replace(elsewhere, hash_part=HashPart("2" * 32)))
    unchecked = story.put("unchecked", compression="br", file_hash=None)
    swollen = story.put("swollen", file_size=10 * MIB)
    dangling = story.put("dangling", references=[store_object("gone").narinfo])
    referrer = story.put("referrer", references=[other])
    plan, published = await story.run()
    assert [one.store_path for one in published.listed] == [good.store_path]
    reasons = {name: plan.left_out[name] for name in sorted(plan.left_out)}
    assert "is about" in reasons[f"{other.store_path.hash_part}.narinfo"]
    assert "hash part" in reasons["not-a-hash-part.narinfo"]
    assert "nothing vouches for it" in reasons[unchecked.store_path.base_name]
    assert "its FileSize" in reasons[swollen.store_path.base_name]
    assert "which nobody has" in reasons[dangling.store_path.base_name]
    assert "which is not imported" in reasons[referrer.store_path.base_name]
    assert len(reasons) == 8


async def test_links_out_of_the_folder_are_not_followed(story: ImportStory, tmp_path: Path) -> None:
    """A cache that a stranger wrote must not get other files of this machine published."""
    secret = tmp_path / "secret"
    outside = story.put("outside", compression="none")
    secret.write_bytes((story.source / outside.url).read_bytes())
    (story.source / outside.url).unlink()
    (story.source / outside.url).symlink_to(secret)
    above = story.put("above", url="nar/../../secret")
    _, published = await story.run()
    assert "is a symbolic link, not a file" in published.failed[outside.store_path.base_name]
    assert "names no file in it" in published.failed[above.store_path.base_name]
    assert published.listed == ()


async def test_new_signatures_are_added_without_the_bytes(story: ImportStory) -> None:
    """What is listed already, and signed by more meanwhile, is listed again with all of them."""
    story.put("path", keys=[THEIRS])
    await story.run()
    more = SecretKey.generate("more-1")
    story.put("path", keys=[more])
    plan, published = await story.run()
    assert len(plan.plan.relist) == 1
    assert {sig.key_name for sig in published.listed[0].sigs} == {"theirs-1", "more-1"}
    assert (story.told.sent_bytes, story.told.staged) == (0, 0)


async def test_what_clients_get_upstream_is_not_taken(story: ImportStory) -> None:
    """By the name of who signed it, as publish decides; nobody's keys are asked for then."""
    upstreams = story.put("upstreams", keys=[SecretKey.generate("upstream-1")])
    own = story.put("own", references=[upstreams])
    plan, published = await story.run(public_keys=[THEIRS.public_key])
    assert [info.store_path for info in plan.plan.upstream] == [upstreams.store_path]
    assert [narinfo.store_path for narinfo in published.listed] == [own.store_path]
    assert not plan.left_out


async def test_a_source_that_dies_ends_the_import(
    story: ImportStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a bounded number of tries, in one line, and nothing is listed; the next run completes it."""
    monkeypatch.setattr(import_staging, "_PAUSES_SECONDS", (0.01, 0.01))
    told = [story.put(f"path-{number}", compression="xz") for number in range(40)]
    asked: list[str] = []
    is_dead = True

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if is_dead and request.path.startswith("/nar/") and len(asked) > 60:
            return web.Response(status=502)
        return web.FileResponse(story.source / request.path[1:])

    async with serve(handle) as url:
        upstream = parse_upstream(url)
        with pytest.raises(Error, match="status 502; run this again when it answers"):
            await story.run(wanted=told, source=WebCache(upstream))
        with pytest.raises(NotFoundError):
            await story.repository.resolve("cache-index")
        assert len(asked) < 150
        is_dead = False
        _, published = await story.run(wanted=told, source=WebCache(upstream))
    assert len(published.listed) == len(told)


async def test_a_download_that_breaks_off_begins_again(
    story: ImportStory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the server cannot resume; one that always breaks off is named, and the rest taken."""
    monkeypatch.setattr(import_staging, "_PAUSES_SECONDS", (0.01, 0.01))
    large = b"".join(dump_tree(File(hashlib.shake_256(b"large").digest(5 * MIB))))
    told = [story.put(name, large, "none") for name in ("twice", "ever")]
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        content = (story.source / request.path[1:]).read_bytes()
        if not request.path.startswith("/nar/"):
            return web.Response(body=content)
        asked.append(request.path)
        response = web.StreamResponse(headers={"Content-Length": str(len(content))})
        await response.prepare(request)
        is_cut = "ever" in request.path or asked.count(request.path) < 3
        await response.write(content[: len(content) // 2] if is_cut else content)
        assert request.transport is not None
        request.transport.close()
        return response

    async with serve(handle) as url:
        _, published = await story.run(wanted=told, source=WebCache(parse_upstream(url)))
    assert [narinfo.store_path for narinfo in published.listed] == [told[0].store_path]
    assert "its NAR cannot be fetched" in published.failed[told[1].store_path.base_name]
    assert asked.count("/nar/ever.nar.none") == 3
    assert list(story.folder.glob("**/*.nar")) == []


async def test_our_signature_is_added_later(story: ImportStory) -> None:
    """To what was imported without it: its NAR is looked at again, and not sent again."""
    story.put("path")
    await story.run()
    _, published = await story.run([KEY])
    assert (story.told.staged, story.told.sent_bytes) == (1, 0)
    assert is_signed_by(published.listed[0], [KEY.public_key])


async def test_many_missing_nars_are_no_dead_source(story: ImportStory) -> None:
    """Each is named; an empty file is as good as none, also where nothing else could be found out."""
    missing = [story.put(f"missing-{number}", url="nar/nowhere") for number in range(20)]
    empty = story.put("empty", compression="br", content=b"", file_size=None)
    good = story.put("good")
    _, published = await story.run()
    assert [one.store_path for one in published.listed] == [good.store_path]
    assert published.failed.keys() == {one.store_path.base_name for one in (*missing, empty)}


async def test_single_failures_do_not_add_up(story: ImportStory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that answers in between is alive, however many of its NARs it cannot give."""
    monkeypatch.setattr(import_staging, "_PAUSES_SECONDS", ())
    told = [story.put(f"path-{number}") for number in range(40)]
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if request.path.startswith("/nar/") and len(asked) % 4 == 0:
            return web.Response(status=500)
        return web.FileResponse(story.source / request.path[1:])

    async with serve(handle) as url:
        _, published = await story.run(wanted=told, source=WebCache(parse_upstream(url)))
    assert len(published.failed) == 10
    assert len(published.listed) == 30


async def test_what_the_source_lacks_an_upstream_may_have(story: ImportStory) -> None:
    """A closure is complete or not listed; where nobody could say, nothing is sent."""
    gone = store_object("gone").narinfo
    referrer = story.put("referrer", references=[gone])
    async with serve(answering(status=500)) as url:
        with pytest.raises(Error, match=f"no upstream could say whether it has {gone.store_path.base_name}"):
            await story.run(upstream=url)
    async with serve(answering(text=gone.render())) as url:
        _, published = await story.run(upstream=url)
    assert [one.store_path for one in published.listed] == [referrer.store_path]


async def test_another_build_of_a_listed_path_is_left_alone(story: ImportStory) -> None:
    """Clients are served already; to list both would only make them choose."""
    story.put("path")
    await story.run()
    story.put("path", b"".join(dump_tree(File(b"another"))))
    plan, published = await story.run()
    assert (len(plan.plan.cached), published.listed) == (1, ())
