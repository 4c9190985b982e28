"""The verb ``info``: what clients get of a path, what else is listed of it, and what keeps it."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from nixcache_oci.cache.record import PinRecord, PublishRecord, Record
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.content_address import ContentAddress
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, SecretKey
from nixcache_oci.nix.store_path import StorePath
from tests.cli.cache_story import condemn, publish_text, run_json, write_layout
from tests.support.journey import push_with, settings_of
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject, publish
from tests.support.registries import Ghcr

KEY = SecretKey.generate("info-1")
A, B, C = (store_object(name, contents=name.encode() * 5000) for name in "abc")
DAY = timedelta(days=1)


def put(layout: Path, *objects: StoreObject, records: Iterable[Record] = (), in_packs: bool = True) -> None:
    write_layout(
        layout, lambda cache: publish(cache, objects, keys=[KEY], records=tuple(records), in_packs=in_packs)
    )


def run_info(capsys: pytest.CaptureFixture[str], what: StoreObject) -> dict[str, Any]:
    (info,) = run_json(capsys, "info", str(what.narinfo.store_path))["paths"]
    assert isinstance(info, dict)
    return info


def run_text(capsys: pytest.CaptureFixture[str], what: StoreObject) -> list[str]:
    assert main(["info", str(what.narinfo.store_path)]) == DONE
    return capsys.readouterr().out.splitlines()


def rebuilt(one: StoreObject) -> StoreObject:
    """The same path with other bytes, as two builders that raced leave it."""
    other = store_object("rebuilt")
    narinfo = replace(one.narinfo, nar_hash=other.narinfo.nar_hash, nar_size=other.narinfo.nar_size)
    return StoreObject(narinfo, other.nar)


def test_variants(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All that list it are told, and which of them clients get: not the condemned one."""
    first, second = A.signed(KEY), rebuilt(A).signed(KEY)

    async def story(cache: Repository) -> None:
        await publish(cache, [first], keys=[KEY])
        dying = await publish(cache, [second], created=CREATED + DAY, keys=[KEY])
        await condemn(cache, dying, "2026-12-01T00:00:00Z")

    write_layout(layout, story)
    info = run_info(capsys, A)
    assert (info["narHash"], info["condemned"], info["served"]) == (str(A.narinfo.nar_hash), False, True)
    told = [(one["narHash"], one["condemned"], one["served"]) for one in info["variants"]]
    assert told == [
        (str(first.narinfo.nar_hash), False, True),
        (str(second.narinfo.nar_hash), True, False),
    ]
    lines = [line for line in run_text(capsys, A) if line.startswith("Listed by: ")]
    assert lines[0].endswith(" (served)")
    assert lines[1].endswith(f" (condemned 2026-12-01T00:00:00Z, another NAR, {second.narinfo.nar_hash})")


def test_a_signature_by_a_configured_key_decides(
    layout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the proxy: of two variants the signed one is served, even where it is condemned."""

    async def story(cache: Repository) -> None:
        dying = await publish(cache, [A.signed(KEY), B.signed(KEY)], keys=[KEY])
        await publish(cache, [rebuilt(A)], created=CREATED + DAY)
        await condemn(cache, dying, "2026-12-01T00:00:00Z")

    write_layout(layout, story)
    assert run_info(capsys, A)["narHash"] == str(rebuilt(A).narinfo.nar_hash)
    monkeypatch.setenv("NIXCACHE_PUBLIC_KEYS", str(KEY.public_key))
    info = run_info(capsys, A)
    assert (info["narHash"], info["served"]) == (str(A.narinfo.nar_hash), True)
    assert info["signatures"] == {"info-1": "good"}


def test_what_no_configured_key_signed(
    layout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is shown, and that no client gets it; nor does it count in another's closure."""
    top = replace(C, narinfo=replace(C.narinfo, references=(A.narinfo.store_path.base_name,)))
    put(layout, A, top.signed(KEY))
    assert run_info(capsys, top)["closure"]["paths"] == 2
    assert "Signature: none" in run_text(capsys, A)
    monkeypatch.setenv("NIXCACHE_PUBLIC_KEYS", str(KEY.public_key))
    info = run_info(capsys, A)
    assert (info["served"], info["signatures"]) == (False, {})
    assert [one["served"] for one in info["variants"]] == [False]
    assert "Served: no, no configured key signed it" in run_text(capsys, A)
    closure = run_info(capsys, top)["closure"]
    assert (closure["paths"], closure["elsewhere"]) == (1, 1)


def test_signatures_of_several_keys(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its verdict, by the keys that the cache recorded."""
    unknown, forged = SecretKey.generate("unknown-1"), SecretKey.generate(KEY.name)
    put(layout, A.signed(KEY, unknown), B.signed(forged))
    assert run_info(capsys, A)["signatures"] == {"info-1": "good", "unknown-1": "unknown key"}
    assert run_info(capsys, B)["signatures"] == {"info-1": "wrong"}
    assert "Signature of info-1: wrong" in run_text(capsys, B)


def test_what_names_its_own_content_needs_no_signature(
    layout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, and is served also where keys are configured."""
    address = f"fixed:r:{A.narinfo.nar_hash}"
    path = ContentAddress.parse(address).store_path("source", (), "/nix/store")
    source = replace(A, narinfo=replace(A.narinfo, store_path=path, ca=address))
    put(layout, source)
    monkeypatch.setenv("NIXCACHE_PUBLIC_KEYS", str(KEY.public_key))
    info = run_info(capsys, source)
    assert (info["served"], info["contentAddressed"], info["signatures"]) == (True, True, {})
    assert "Content address: good, so no signature is needed" in run_text(capsys, source)


def test_where_the_bytes_lie(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A blob of its own has neither offset nor length; what a pack holds is cut out by both."""
    put(layout, A, in_packs=False)
    put(layout, B)
    narinfo, content = B.compressed()
    whole, packed = run_info(capsys, A), run_info(capsys, B)
    assert (whole["offset"], whole["length"]) == (None, None)
    assert (layout / "blobs/sha256" / whole["blob"].partition(":")[2]).read_bytes() == A.compressed()[1]
    pack = (layout / "blobs/sha256" / packed["blob"].partition(":")[2]).read_bytes()
    assert pack[packed["offset"] :][: packed["length"]] == content
    assert packed["fileSize"] == narinfo.file_size
    assert f"Bytes: blob {whole['blob']}" in run_text(capsys, A)
    assert f"Bytes: pack {packed['blob']}, {len(content)} bytes from 0 on" in run_text(capsys, B)


def test_roots_and_pins_that_hold_it(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each root with its scope and whether it builds now, each pin with its end."""
    path = A.narinfo.store_path
    put(
        layout,
        A,
        B,
        records=[
            PublishRecord("main-x", "1", CREATED, (("packages.x.a", path), ("b", B.narinfo.store_path))),
            PublishRecord("main-x", "2", CREATED + DAY, (), ("packages.x.a",)),
            PublishRecord("other", "1", CREATED, (("packages.x.a", path),)),
            PinRecord("release-1.0", path, CREATED, "for 5 revisions"),
            PinRecord("release-1.1", B.narinfo.store_path, CREATED, "forever"),
        ],
    )
    info = run_info(capsys, A)
    assert [(root["scope"], root["failed"]) for root in info["roots"]] == [
        ("main-x", "2026-11-22T03:15:00Z"),
        ("other", None),
    ]
    assert [pin["name"] for pin in info["pins"]] == ["release-1.0"]
    assert [line for line in run_text(capsys, A) if line.startswith(("Root: ", "Pin: "))] == [
        "Root: packages.x.a of main-x, built 2026-11-21T03:15:00Z; failed 2026-11-22T03:15:00Z",
        "Root: packages.x.a of other, built 2026-11-21T03:15:00Z",
        "Pin: release-1.0, pinned 2026-11-21T03:15:00Z, kept for 5 revisions",
    ]


def test_a_root_of_two_scopes_is_both(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What each became; one that both have become is told once."""
    roots = {"one": A, "two": B, "three": A}
    records = [
        PublishRecord(scope, "1", CREATED, (("default", one.narinfo.store_path),))
        for scope, one in roots.items()
    ]
    put(layout, A, B, records=records)
    infos = run_json(capsys, "info", "default")["paths"]
    assert {info["path"] for info in infos} == {str(one.narinfo.store_path) for one in (A, B)}
    assert len(infos) == 2
    assert main(["info", "default"]) == DONE
    text = capsys.readouterr().out
    assert text.count("StorePath: ") == 2
    assert "\n\nStorePath: " in text


@pytest.mark.parametrize("also", [False, True])
def test_a_root_that_lies_elsewhere(layout: Path, capsys: pytest.CaptureFixture[str], *, also: bool) -> None:
    """An upstream has it: it was built, and is not listed here; of several outputs the others are shown."""
    roots = [("default", C.narinfo.store_path), *([("default", A.narinfo.store_path)] if also else [])]
    put(layout, A, records=[PublishRecord("main-x", "1", CREATED, tuple(roots))])
    assert main(["info", "default"]) == (DONE if also else FAILED)
    shown = capsys.readouterr()
    assert ("StorePath: " in shown.out) == also
    assert str(C.narinfo.store_path) in shown.err
    assert "not listed here" in shown.err


def test_a_root_that_never_built(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where and when it failed."""
    put(layout, records=[PublishRecord("main-x", "1", CREATED, (), ("default",))])
    assert main(["info", "default"]) == FAILED
    error = capsys.readouterr().err
    assert "the root default was never built; it failed in main-x at 2026-11-21T03:15:00Z" in error


def test_what_is_served_to_nobody(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listed and malformed is another answer than not listed: it says where, and what is wrong."""
    text = render_table(Table(TableHeader(CREATED), (), (A.compressed()[0],))).decode()
    spoilt = text.replace("Compression: zstd", "Compression: secret")
    write_layout(layout, lambda cache: publish_text(cache, spoilt, CREATED))
    assert main(["info", str(A.narinfo.store_path)]) == FAILED
    error = capsys.readouterr().err
    assert "segment-20261121t031500z" in error
    assert "no Nix knows the compression 'secret'" in error


def test_a_malformed_record_is_named(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The path is shown, and the exit status tells that what keeps it may not be all."""
    record = PinRecord("release", A.narinfo.store_path, CREATED, "forever")
    text = render_table(Table(TableHeader(CREATED), (record,), (A.compressed()[0],))).decode()
    write_layout(layout, lambda cache: publish_text(cache, text.replace("forever", "for now"), CREATED))
    (info,) = run_json(capsys, "info", A.narinfo.store_path.hash_part, status=FAILED)["paths"]
    assert (info["path"], info["pins"]) == (str(A.narinfo.store_path), [])


def test_names_cannot_forge_lines(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is asked for, or recorded: a terminal gets printable letters only."""
    put(layout, A, records=[PublishRecord("main-x", "1", CREATED, (("a\u202eb", A.narinfo.store_path),))])
    assert r"Root: a\u202eb of main-x" in "\n".join(run_text(capsys, A))
    assert main(["info", "x\n\x1b[31m"]) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert r"\n\x1b[31m" in line


@pytest.mark.needs("nix")
def test_what_nix_made(
    ghcr: Ghcr,
    nix: NixSandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Real paths, in a registry: the narinfo, Nix's own signature, and the closure as Nix counts it."""
    paths = nix.build_paths(6)
    secret_key, public_key = nix.generate_key("nix-1")
    nix.sign(paths, secret_key)
    objects = read_objects(nix, paths)
    push_with(ghcr, lambda cache: publish(cache, objects))
    for name, value in settings_of(ghcr, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NIXCACHE_INDEX_DIR", str(tmp_path / "index"))
    monkeypatch.setenv("NIXCACHE_PUBLIC_KEYS", str(PublicKey.parse(public_key)))
    (info,) = run_json(capsys, "info", paths[-1])["paths"]
    assert NarInfo.parse(info["narinfo"]).store_path == StorePath.parse(paths[-1])
    assert info["signatures"] == {"nix-1": "good"}
    closure = nix.run("nix-store", "--query", "--requisites", paths[-1]).check().stdout.split()
    sizes = {str(one.narinfo.store_path): one.narinfo.nar_size for one in objects}
    assert info["closure"]["paths"] == len(closure)
    assert info["closure"]["narSize"] == sum(sizes[path] for path in closure)
    assert info["closure"]["elsewhere"] == 0
