"""Version 1: the older tool's index, read as it is."""

import json

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.cache.version1 import parse_version1
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object

NARINFO = store_object("one").narinfo
BLOB = Digest.of(b"blob")


def document(**entry: object) -> bytes:
    good = {"name": "one", "narinfo": NARINFO.render(), "nar_digest": str(BLOB), "nar_size": 4, "added": "x"}
    entries = {NARINFO.store_path.hash_part: {**good, **entry}}
    return json.dumps({"version": 1, "public_key": "k:AAAA\n", "entries": entries, "gc_roots": []}).encode()


@pytest.mark.parametrize("digest", [str(BLOB), BLOB.hex])
@pytest.mark.parametrize("text", [NARINFO.render(), NARINFO.render().rstrip("\n")])
def test_the_url_says_where_the_bytes_lie(digest: str, text: str) -> None:
    """The narinfo's own URL names the hash part, which tells nothing; all else stays as it was signed."""
    version1 = parse_version1(document(nar_digest=digest, narinfo=text))
    [narinfo] = version1.table.narinfos
    assert NarUrl.parse(narinfo.url).blob == BLOB
    assert (narinfo.store_path, narinfo.nar_hash) == (NARINFO.store_path, NARINFO.nar_hash)
    assert version1.table.header.public_keys == ("k:AAAA",)


@pytest.mark.parametrize(
    "entry",
    [
        {"narinfo": "StorePath: nonsense\n"},
        {"narinfo": store_object("another").narinfo.render()},
        {"narinfo": None},
        {"nar_digest": "sha256:short"},
        {"nar_digest": 5},
    ],
)
def test_a_malformed_entry_is_named_and_left_out(entry: dict[str, object]) -> None:
    """One bad entry must not hide a hundred thousand good ones."""
    version1 = parse_version1(document(**entry))
    assert version1.table.narinfos == ()
    assert [hash_part for hash_part, _ in version1.skipped] == [NARINFO.store_path.hash_part]


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
