import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.local_store.path_info import PathInfo, parse_path_infos, parse_registrations
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.hash import NixHash

_FIXTURES = Path(__file__).parent / "fixtures"
_SHAPES = ("2.8", "2.26", "2.34-format-1", "2.34-format-2")
_STORE = "/nix/store"


def _read(name: str) -> dict[str, PathInfo | None]:
    infos = parse_path_infos((_FIXTURES / name).read_bytes(), _STORE)
    return {path.name: info for path, info in infos.items()}


@pytest.mark.parametrize("shape", _SHAPES)
def test_every_shape_says_the_same(shape: str) -> None:
    """What is published does not depend on which Nix the publisher has."""
    assert _read(f"path-info-{shape}.json") == _read("path-info-2.8.json")
    assert _read(f"path-info-{shape}-derivation.json") == _read("path-info-2.8-derivation.json")


def test_what_is_read() -> None:
    """References and deriver are base names, hashes are values, signatures are all there."""
    top = _read("path-info-2.34-format-2.json")["top"]
    assert top is not None
    assert str(top.store_path) == "/nix/store/rmls3l6557n63na18h9lxrdfnjb00vrc-top"
    assert top.nar_size == 216
    assert top.nar_hash == NixHash.parse("sha256-WJRcvsUe1gMwqO5yxKRpFj0su9KOBIj2FL2qUtsg6GY=")
    assert top.references == ("rmls3l6557n63na18h9lxrdfnjb00vrc-top", "v71yfj64kk1f150ln7lhazlhk04sfvm1-base")
    assert top.deriver == "pk6n64adwkr8765a1a1905k7r55qhgn6-top.drv"
    assert [sig.key_name for sig in top.sigs] == ["cache.example.org-1", "my-cache-1"]
    assert top.ca is None


@pytest.mark.parametrize("shape", _SHAPES)
def test_content_addresses(shape: str) -> None:
    """One of the whole NAR vouches for the path, however written; an unknown path is told apart, not lost."""
    infos = _read(f"path-info-{shape}.json") | _read(f"path-info-{shape}-derivation.json")
    proven = {name for name, info in infos.items() if info is not None and is_content_addressed(info)}
    assert proven == {"source"}
    infos = _read(f"path-info-{shape}-absent.json")
    assert (infos["absent"], infos["source"] is None) == (None, False)


def test_the_database_as_lines() -> None:
    """Without today's commands everything but signatures and content addresses is the same."""
    infos = parse_registrations((_FIXTURES / "dump-db-2.8.txt").read_bytes(), _STORE)
    told = _read("path-info-2.8.json") | _read("path-info-2.8-derivation.json")
    expected = {
        info.store_path: dataclasses.replace(info, sigs=(), ca=None) for info in told.values() if info
    }
    assert infos == expected


def test_older_spellings() -> None:
    """Hashes were nix32 once, and what is empty was left out; a git tree has a content address of its own."""
    entry = {
        "path": f"{_STORE}/rmls3l6557n63na18h9lxrdfnjb00vrc-top",
        "narHash": "sha256:0gs0m5in0fwx2kb7z4p2r9p0c58gcqh4p3w1x8p6lw9k1q2c5hzi",
        "narSize": 216,
    }
    (info,) = parse_path_infos(json.dumps([entry]).encode(), _STORE).values()
    assert info is not None
    assert str(info.nar_hash) == entry["narHash"]
    assert (info.references, info.deriver, info.sigs, info.ca) == ((), None, (), None)
    git_hash = "sha1-Kq5sNclPz7QV2+lfQIuc6R7oRu0="
    git = {**entry, "ca": {"method": "git", "hash": git_hash}}
    (info,) = parse_path_infos(json.dumps([git]).encode(), _STORE).values()
    assert info is not None
    assert info.ca == f"fixed:git:{NixHash.parse(git_hash)}"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *(("", "not JSON"), ("1", "expected an object"), ("[1]", "expected an object")),
        ('[{"valid": false}]', "path: is missing"),
        ('{"info": {}, "version": 3}', "expected version 2"),
        ('{"/other/rmls3l6557n63na18h9lxrdfnjb00vrc-top": null}', "right below /nix/store"),
        ('{"/nix/store/short": null}', "expected <hash part>-<name>"),
        ('{"rmls3l6557n63na18h9lxrdfnjb00vrc-top": {"narSize": true}}', "top: narSize"),
        ('{"rmls3l6557n63na18h9lxrdfnjb00vrc-top": {"narSize": 1}}', "top: narHash: is missing"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    """A shape that no known Nix prints is refused, and named."""
    with pytest.raises(FormatError, match=f"nix path-info: .*{reason}"):
        parse_path_infos(text.encode(), _STORE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("narHash", "sha256-short"), ("narSize", "216"), ("narSize", 0), ("references", [1])),
        ("references", ["/nix/store"]),
        ("deriver", "/other/store/rmls3l6557n63na18h9lxrdfnjb00vrc-top.drv"),
        ("ca", {"method": "unheard-of", "hash": "sha256-SwPvukQYB9mSKHO/IecgrAdphr8p6+4q4CdP8SmICLo="}),
        ("ca", {"method": "nar"}),
    ],
)
def test_fields_that_are_refused(name: str, value: object) -> None:
    """What would end up in a narinfo is checked at the door."""
    document = json.loads((_FIXTURES / "path-info-2.26.json").read_bytes())
    path = next(iter(document))
    document[path][name] = value
    with pytest.raises(FormatError):
        parse_path_infos(json.dumps(document).encode(), _STORE)


@given(st.integers(0, 900))
def test_cut_lines_are_refused(length: int) -> None:
    """A database dump that was cut is not taken for a smaller one, unless it ends between two paths."""
    whole = (_FIXTURES / "dump-db-2.8.txt").read_bytes()
    complete = parse_registrations(whole, _STORE)
    try:
        infos = parse_registrations(whole[:length], _STORE)
    except FormatError:
        return
    assert infos.items() <= complete.items()


def test_a_signature_that_cannot_be_read_does_not_keep_its_path_back() -> None:
    """Stores hold what any cache once sent: the path and its other signatures are published all the same."""
    good = f"good-1:{'A' * 86}=="
    odd = ["x-1:AAAA", "garbage", "", "my cache 1:" + "A" * 86 + "=="]
    entry = {"path": f"{_STORE}/{1:032}-x", "narHash": f"sha256:{'0' * 64}", "narSize": 120, "references": []}
    text = json.dumps([{**entry, "signatures": [*odd, good]}])
    [info] = parse_path_infos(text.encode(), _STORE).values()
    assert info is not None
    assert [str(sig) for sig in info.sigs] == [good]
