import dataclasses
from pathlib import Path

import pytest

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.content_address import ContentAddress, Method, is_content_addressed
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from tests.nix.samples import NARINFOS, narinfo_text

_HASH = NixHash(bytes(32))
_REFERENCE = "wh95ph7yyj7a9gqziw85bhapwkb96vln-plain"
_ADDRESSED = [path for path in NARINFOS if "\nCA: " in path.read_text()]


def _narinfo(name: str) -> NarInfo:
    return NarInfo.parse(narinfo_text(name))


def _rewritten() -> NarInfo:
    """Make the fixture that refers to itself, and whose path follows from its content."""
    (text,) = [text for path in _ADDRESSED if "-selfish\n" in (text := path.read_text())]
    return NarInfo.parse(text)


def test_the_fixtures_hold_every_kind() -> None:
    """Text, flat and recursive addresses, of all algorithms, with references and without, came from Nix."""
    narinfos = [NarInfo.parse(path.read_text()) for path in _ADDRESSED]
    addresses = [ContentAddress.parse(narinfo.ca or "") for narinfo in narinfos]
    assert {address.method for address in addresses} == set(Method)
    assert {address.hash.algorithm for address in addresses} == {"md5", "sha1", "sha256", "sha512"}
    assert _rewritten().store_path.base_name in _rewritten().references


@pytest.mark.parametrize("path", _ADDRESSED, ids=[path.stem for path in _ADDRESSED])
def test_paths_follow_from_contents_as_in_nix(path: Path) -> None:
    """The calculation leads to the very paths that real Nix made."""
    narinfo = NarInfo.parse(path.read_text())
    own = narinfo.store_path
    address = ContentAddress.parse(narinfo.ca or "")
    others = [reference for reference in narinfo.references if reference != own.base_name]
    refers_to_itself = own.base_name in narinfo.references
    assert own == address.store_path(own.name, others, own.store_dir, refers_to_itself=refers_to_itself)
    assert str(address) == narinfo.ca


@pytest.mark.parametrize("path", _ADDRESSED, ids=[path.stem for path in _ADDRESSED])
def test_only_an_address_of_the_whole_nar_vouches_for_it(path: Path) -> None:
    """Beside any other address a registry could put the NarHash of bytes of its own."""
    narinfo = NarInfo.parse(path.read_text())
    binds = narinfo.ca == f"fixed:r:{narinfo.nar_hash}"
    assert is_content_addressed(narinfo) == binds
    assert not is_content_addressed(dataclasses.replace(narinfo, nar_hash=_HASH))


def test_the_order_of_references_does_not_matter() -> None:
    """They are a set; the calculation sorts them."""
    references = [f"{letter * 32}-name" for letter in "abc"]
    address = ContentAddress(Method.NAR, _HASH)
    assert address.store_path("name", references, "/nix/store") == address.store_path(
        "name", references[::-1], "/nix/store"
    )


def test_a_false_claim_proves_nothing() -> None:
    """Another name, reference, hash, method or store dir leads to another path."""
    narinfo = _narinfo("recursive-sha256")
    assert is_content_addressed(narinfo)
    path = narinfo.store_path
    for changed in (
        dataclasses.replace(narinfo, ca=None),
        dataclasses.replace(narinfo, ca=f"fixed:r:{_HASH}"),
        dataclasses.replace(narinfo, ca=f"fixed:{narinfo.nar_hash}"),
        dataclasses.replace(narinfo, ca=f"text:{narinfo.nar_hash}"),
        dataclasses.replace(narinfo, references=(path.base_name,)),
        dataclasses.replace(narinfo, references=(_REFERENCE,)),
        dataclasses.replace(narinfo, store_path=dataclasses.replace(path, name="other")),
        dataclasses.replace(narinfo, store_path=dataclasses.replace(path, store_dir="/gnu/store")),
    ):
        assert not is_content_addressed(changed)


@pytest.mark.parametrize(
    "text",
    [
        *("", "fixed", "fixed:", f"{_HASH}", f"nar:{_HASH}", f"fixed:git:sha1:{'0' * 32}"),
        *(f"fixed:r:blake3:{'0' * 52}", f"text:sha1:{'0' * 32}", f"text:r:{_HASH}"),
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    """Unknown methods and algorithms, and text hashed with anything but sha256, are errors."""
    with pytest.raises(FormatError):
        ContentAddress.parse(text)


def test_only_some_kinds_may_refer() -> None:
    """A fixed output refers to nothing, a text not to itself."""
    with pytest.raises(FormatError, match="cannot have these references"):
        ContentAddress(Method.FLAT, _HASH).store_path("name", [_REFERENCE], "/nix/store")
    with pytest.raises(FormatError, match="cannot have these references"):
        ContentAddress(Method.TEXT, _HASH).store_path("name", [], "/nix/store", refers_to_itself=True)
