"""Version 1: the older tool's index, read as it is."""

import json
from dataclasses import replace

import pytest

from nixcache_oci.cache import version1 as module
from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table import render_table
from nixcache_oci.cache.table_search import MAX_STANZA_BYTES
from nixcache_oci.cache.version1 import parse_version1
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object

NARINFO = store_object("one").narinfo
BLOB = Digest.of(b"blob")
KEY = str(SecretKey.generate("old-cache-1").public_key)


def document(public_key: object = f"{KEY}\n", gc_roots: object = (), **entry: object) -> bytes:
    good = {"name": "one", "narinfo": NARINFO.render(), "nar_digest": str(BLOB), "nar_size": 4, "added": "x"}
    entries = {NARINFO.store_path.hash_part: {**good, **entry}}
    return json.dumps(
        {"version": 1, "public_key": public_key, "entries": entries, "gc_roots": gc_roots}
    ).encode()


@pytest.mark.parametrize("digest", [str(BLOB), BLOB.hex])
@pytest.mark.parametrize("text", [NARINFO.render(), NARINFO.render().rstrip("\n")])
def test_the_url_says_where_the_bytes_lie(digest: str, text: str) -> None:
    """The narinfo's own URL names the hash part, which tells nothing; all else stays as it was signed."""
    version1 = parse_version1(document(nar_digest=digest, narinfo=text))
    [narinfo] = version1.to_table().narinfos
    assert NarUrl.parse(narinfo.url).blob == BLOB
    assert (narinfo.store_path, narinfo.nar_hash) == (NARINFO.store_path, NARINFO.nar_hash)
    assert version1.public_keys == (KEY,)
    assert version1.skipped == []


@pytest.mark.parametrize(
    "entry",
    [
        {"narinfo": "StorePath: nonsense\n"},
        {"narinfo": store_object("another").narinfo.render()},
        {"narinfo": None},
        {"nar_digest": "sha256:short"},
        {"nar_digest": 5},
        {"narinfo": NARINFO.render() + "Later: \ud800\n"},
        {"narinfo": NARINFO.render().replace("\n", "\r\n")},
        {"narinfo": NARINFO.render() + f"Note: {'ü' * (MAX_STANZA_BYTES // 2)}\n"},
    ],
)
def test_a_malformed_entry_is_named_and_left_out(entry: dict[str, object]) -> None:
    """One bad entry must not hide a hundred thousand good ones."""
    version1 = parse_version1(document(**entry))
    render_table(version1.to_table())
    assert version1.to_table().narinfos == ()
    assert [hash_part for hash_part, _ in version1.skipped] == [NARINFO.store_path.hash_part]


@pytest.mark.parametrize(
    ("public_key", "skipped"),
    [(None, []), ("", []), (5, []), ("nonsense", ["public_key"]), ("k:AA\n\nStorePath: x", ["public_key"])],
)
def test_a_malformed_key_does_not_hide_the_entries(public_key: object, skipped: list[str]) -> None:
    """It is named; what was signed with it can be checked with a configured key all the same."""
    version1 = parse_version1(document(public_key))
    assert len(version1.to_table().narinfos) == 1
    assert version1.public_keys == ()
    assert [name for name, _ in version1.skipped] == skipped
    render_table(version1.to_table())


PATH = NARINFO.store_path
OTHER = store_object("other").narinfo.store_path


@pytest.mark.parametrize(
    ("recorded", "path"),
    [
        (str(PATH), PATH),
        (PATH.base_name, PATH),
        (str(PATH.hash_part), PATH),
        (str(OTHER), OTHER),
        (OTHER.base_name, OTHER),
        (f"/gnu/store/{OTHER.base_name}", replace(OTHER, store_dir="/gnu/store")),
    ],
)
def test_a_root_is_known_in_every_form(recorded: str, path: StorePath) -> None:
    """gc must not take what the older tool kept; a root that is no entry may be in a segment by now."""
    version1 = parse_version1(document(gc_roots=[recorded, recorded]))
    assert version1.gc_roots == (path,)
    assert version1.skipped == []


@pytest.mark.parametrize(
    "recorded",
    [
        str(OTHER.hash_part),
        f"/nix/store/{PATH.hash_part}",
        f"{PATH}/bin",
        f"store/{OTHER.base_name}",
        "",
        "/",
        "nonsense-one",
        5,
        None,
        {"path": str(PATH)},
    ],
)
def test_a_root_that_cannot_be_read_is_named(recorded: object) -> None:
    """The others count all the same."""
    version1 = parse_version1(document(gc_roots=[recorded, str(PATH)]))
    assert version1.gc_roots == (PATH,)
    assert [name for name, _ in version1.skipped] == ["gc_roots"]


@pytest.mark.parametrize(
    ("recorded", "skipped"), [(None, []), ([], []), ({}, ["gc_roots"]), (7, ["gc_roots"])]
)
def test_roots_of_another_shape_do_not_hide_the_entries(recorded: object, skipped: list[str]) -> None:
    """Serving does not need them."""
    version1 = parse_version1(document(gc_roots=recorded))
    assert len(version1.to_table().narinfos) == 1
    assert version1.gc_roots == ()
    assert [name for name, _ in version1.skipped] == skipped


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"version": 2, "entries": {}}',
        b'{"version": 1, "entries": []}',
        b"[" * 9999,
    ],
)
def test_anything_else_is_refused(content: bytes) -> None:
    """It is an error, and never an empty cache."""
    with pytest.raises(FormatError):
        parse_version1(content)


def test_its_entries_and_roots_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is skipped is remembered by its name; of the reasons, the first are enough."""
    monkeypatch.setattr(module, "MAX_ENTRIES", 100)

    def with_entries(count: int) -> bytes:
        return json.dumps({"version": 1, "entries": {f"entry-{n}": {} for n in range(count)}}).encode()

    version1 = parse_version1(with_entries(100))
    assert (version1.skipped_count, len(version1.unreadable), len(version1.skipped)) == (100, 100, 20)
    for content in (
        with_entries(101),
        document(gc_roots=[5] * 101),
        document()[:-1] + b',"x":1' * 101 + b"}",
    ):
        with pytest.raises(FormatError, match="over the limit of 100 entries, roots or fields"):
            parse_version1(content)


def test_its_text_is_the_table() -> None:
    """Written a stanza at a time, in order, whatever order the document has."""
    narinfos = [store_object(str(number)).narinfo for number in range(20)]
    entries = {
        one.store_path.hash_part: {"narinfo": one.render(), "nar_digest": str(BLOB)} for one in narinfos
    }
    version1 = parse_version1(json.dumps({"entries": entries, "public_key": KEY, "version": 1}).encode())
    assert b"".join(version1.text()) == render_table(version1.to_table())
    assert len(version1.to_table().narinfos) == 20
