from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import HashPart, StorePath, check_base_name
from tests.nix.samples import hash_parts, store_paths

_HASH = "wh95ph7yyj7a9gqziw85bhapwkb96vln"


@given(store_paths)
def test_what_is_written_is_read(path: StorePath) -> None:
    """Full paths and base names both lead back to the path."""
    assert StorePath.parse(str(path)) == path
    assert StorePath.parse(str(path), path.store_dir) == path
    assert StorePath.from_base_name(path.base_name, path.store_dir) == path


_ODD_NAMES = (
    st.sampled_from([".", "..", ".-a", "..-a", "...", ".a", "..a"])
    | st.text(st.sampled_from("aZ0+-._?=/ \n\u0660é"), max_size=5)
    | st.text("a", min_size=209)
)


@given(
    st.builds("{}{}{}".format, hash_parts | st.text(max_size=33), st.sampled_from(["-", "", "_"]), _ODD_NAMES)
)
def test_a_base_name_is_good_if_it_can_lie_in_a_store(base_name: str) -> None:
    """The quick check and the one that makes a path say the same."""
    assert _is_good(check_base_name, base_name) == _is_good(StorePath.from_base_name, base_name, "/nix/store")


def _is_good(check: Callable[..., object], *arguments: str) -> bool:
    try:
        check(*arguments)
    except FormatError:
        return False
    return True


@given(st.lists(store_paths))
def test_paths_sort_as_their_text(paths: list[StorePath]) -> None:
    """Tables are sorted by hash part, fingerprints by full path: both are this order within a store dir."""
    here = [StorePath("/nix/store", path.hash_part, path.name) for path in paths]
    assert [str(path) for path in sorted(here)] == sorted(str(path) for path in here)


@given(hash_parts)
def test_a_hash_part_is_text(part: HashPart) -> None:
    """It can be looked up, encoded and compared like the text that it is."""
    assert {str(part): 1}[part] == 1
    assert part.encode().decode() == part == HashPart.parse(str(part))


@pytest.mark.parametrize("text", ["", _HASH[:-1], _HASH + "0", "e" + _HASH[1:], _HASH.upper(), _HASH + "\n"])
def test_bad_hash_parts_are_refused(text: str) -> None:
    """32 nix32 letters and nothing else: a hash part becomes part of URLs and keys."""
    with pytest.raises(FormatError, match="hash part"):
        HashPart(text)


@pytest.mark.parametrize("name", ["a", ".hidden", "..a-b", "A+b-c.d_e?f=1", "a" * 211])
def test_names_that_some_nix_has_made_are_read(name: str) -> None:
    """Older Nix takes names with a leading dot; what it made stays readable."""
    assert StorePath.parse(f"/nix/store/{_HASH}-{name}").name == name


@pytest.mark.parametrize(
    "text",
    [
        *("", _HASH, f"{_HASH}-name", f"/{_HASH}-name", f"nix/store/{_HASH}-name"),
        *(f"/nix/store//{_HASH}-name", f"/nix//store/{_HASH}-name", f"/nix/../store/{_HASH}-name"),
        *(f"/nix/st\nore/{_HASH}-name", f"/nix/store/{_HASH}", f"/nix/store/{_HASH}-"),
        *(f"/nix/store/{_HASH}-.", f"/nix/store/{_HASH}-..", f"/nix/store/{_HASH}-.-a"),
        *(f"/nix/store/{_HASH}-..-a", f"/nix/store/{_HASH}+name", f"/nix/store/{_HASH}-na me"),
        f"/nix/store/{_HASH}-name\n",
        f"/nix/store/{_HASH}-n\N{LATIN SMALL LETTER A WITH DIAERESIS}me",
        *(f"/nix/store/{_HASH}-{'a' * 212}", f"/nix/store/{_HASH}-name/bin"),
        f"/nix/store/{_HASH}-name/",
    ],
)
def test_bad_paths_are_refused(text: str) -> None:
    """Only the path of a store object passes, none of a file inside one."""
    with pytest.raises(FormatError, match=r"store path|store dir|hash part"):
        StorePath.parse(text)


def test_another_store_dir_is_refused() -> None:
    """The same base name below another store dir is another object."""
    with pytest.raises(FormatError, match="right below /nix/store"):
        StorePath.parse(f"/gnu/store/{_HASH}-name", "/nix/store")
