"""Version 1: the older tool's index, read as it is."""

import json

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.table import render_table
from nixcache_oci.cache.version1 import parse_version1
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object

NARINFO = store_object("one").narinfo
BLOB = Digest.of(b"blob")
KEY = str(SecretKey.generate("old-cache-1").public_key)


def document(public_key: object = f"{KEY}\n", **entry: object) -> bytes:
    good = {"name": "one", "narinfo": NARINFO.render(), "nar_digest": str(BLOB), "nar_size": 4, "added": "x"}
    entries = {NARINFO.store_path.hash_part: {**good, **entry}}
    return json.dumps({"version": 1, "public_key": public_key, "entries": entries, "gc_roots": []}).encode()


@pytest.mark.parametrize("digest", [str(BLOB), BLOB.hex])
@pytest.mark.parametrize("text", [NARINFO.render(), NARINFO.render().rstrip("\n")])
def test_the_url_says_where_the_bytes_lie(digest: str, text: str) -> None:
    """The narinfo's own URL names the hash part, which tells nothing; all else stays as it was signed."""
    version1 = parse_version1(document(nar_digest=digest, narinfo=text))
    [narinfo] = version1.table.narinfos
    assert NarUrl.parse(narinfo.url).blob == BLOB
    assert (narinfo.store_path, narinfo.nar_hash) == (NARINFO.store_path, NARINFO.nar_hash)
    assert version1.table.header.public_keys == (KEY,)
    assert version1.skipped == ()


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
    ],
)
def test_a_malformed_entry_is_named_and_left_out(entry: dict[str, object]) -> None:
    """One bad entry must not hide a hundred thousand good ones."""
    version1 = parse_version1(document(**entry))
    assert version1.table.narinfos == ()
    assert [hash_part for hash_part, _ in version1.skipped] == [NARINFO.store_path.hash_part]


@pytest.mark.parametrize(
    ("public_key", "skipped"),
    [(None, []), ("", []), (5, []), ("nonsense", ["public_key"]), ("k:AA\n\nStorePath: x", ["public_key"])],
)
def test_a_malformed_key_does_not_hide_the_entries(public_key: object, skipped: list[str]) -> None:
    """It is named; what was signed with it can be checked with a configured key all the same."""
    version1 = parse_version1(document(public_key))
    assert len(version1.table.narinfos) == 1
    assert version1.table.header.public_keys == ()
    assert [name for name, _ in version1.skipped] == skipped
    render_table(version1.table)


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
