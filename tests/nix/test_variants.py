"""Several narinfos of one store path: which one is given, and with whose signatures."""

from dataclasses import replace

import pytest

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.nix.variants import MOST_UNITED_SIGNATURES, choose_variant
from tests.support.objects import store_object

TRUSTED, OTHER = SecretKey.generate("trusted-1"), SecretKey.generate("other-1")
PLAIN = replace(store_object("x").narinfo, sigs=())


def signed(narinfo: NarInfo, *keys: SecretKey, url: str = "nar/x") -> NarInfo:
    return replace(narinfo, url=url, sigs=tuple(key.sign(fingerprint(narinfo)) for key in keys))


ELSEWHERE = replace(PLAIN, nar_hash=NixHash(bytes(32)))  # built anew, with another result

TABLE = {
    "the first of equals": ([signed(PLAIN, url="a"), signed(PLAIN, url="b")], "a", []),
    "the first of those that agree": (
        [signed(PLAIN, url="a"), signed(PLAIN, OTHER, url="b")],
        "a",
        ["other-1"],
    ),
    "the signed one": ([signed(PLAIN, url="a"), signed(ELSEWHERE, OTHER, url="b")], "b", ["other-1"]),
    "the one that a counting key signed": (
        [signed(ELSEWHERE, OTHER, url="a"), signed(PLAIN, TRUSTED, url="b")],
        "b",
        ["trusted-1"],
    ),
    "signatures of those that agree": (
        [signed(PLAIN, TRUSTED, url="a"), signed(PLAIN, OTHER, url="b"), signed(PLAIN, url="c")],
        "a",
        ["trusted-1", "other-1"],
    ),
    "not those of others": (
        [signed(PLAIN, TRUSTED, url="a"), signed(ELSEWHERE, OTHER, url="b")],
        "a",
        ["trusted-1"],
    ),
    "a name that counts is no signature that does": (
        [replace(PLAIN, url="a", sigs=signed(ELSEWHERE, TRUSTED).sigs), signed(ELSEWHERE, TRUSTED, url="b")],
        "b",
        ["trusted-1"],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_which_is_chosen(case: str) -> None:
    """What Nix would find with each cache named to it, it finds here."""
    variants, url, names = TABLE[case]
    chosen = choose_variant(variants, [TRUSTED.public_key])
    assert (chosen.url, [sig.key_name for sig in chosen.sigs]) == (url, names)


def test_strangers_add_a_bounded_number_of_signatures() -> None:
    """A narinfo has a bounded number of lines, and its own signatures stay."""
    own = signed(PLAIN, TRUSTED)
    many = signed(PLAIN, *(SecretKey.generate(f"key-{number}") for number in range(200)))
    chosen = choose_variant([own, many], [TRUSTED.public_key])
    assert chosen.sigs[:1] == own.sigs
    assert len(chosen.sigs) == 1 + MOST_UNITED_SIGNATURES
    assert NarInfo.parse(chosen.render()) == chosen
