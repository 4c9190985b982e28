import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import DIGEST_SIZES, NixHash

_HELLO = hashlib.sha256(b"hello").digest()

hashes = st.sampled_from(sorted(DIGEST_SIZES)).flatmap(
    lambda algorithm: st.builds(
        NixHash,
        st.binary(min_size=DIGEST_SIZES[algorithm], max_size=DIGEST_SIZES[algorithm]),
        st.just(algorithm),
    )
)


@given(hashes)
def test_four_spellings_are_one_hash(known: NixHash) -> None:
    """Base 16, nix32, base 64 and SRI are all read; nix32 is what is written."""
    encoded = base64.b64encode(known.digest).decode()
    for text in (
        str(known),
        f"{known.algorithm}:{known.digest_hex}",
        f"{known.algorithm}:{known.digest_hex.upper()}",
        f"{known.algorithm}:{encoded}",
        f"{known.algorithm}-{encoded}",
    ):
        assert NixHash.parse(text) == known


def test_hex_is_what_a_blob_digest_says() -> None:
    """A FileHash's hex names the blob in the registry."""
    assert NixHash(_HELLO).digest_hex == hashlib.sha256(b"hello").hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        *("", "sha256", "sha256:", _HELLO.hex(), f"blake3:{_HELLO.hex()}", f"SHA256:{_HELLO.hex()}"),
        *(f"sha256:{_HELLO.hex()[:-1]}", f"sha256:{_HELLO.hex()} ", f"sha256-{_HELLO.hex()}"),
        *(f"sha256:{'g' * 64}", f"sha1:{_HELLO.hex()}", f"sha256:{' '.join(['ab'] * 21)}ab"),
        *(f"sha256:{base64.b64encode(_HELLO).decode()[:-1]}", f"sha256:{'e' * 52}"),
        f"sha256:z{'0' * 51}",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """Wrong lengths, letters and algorithms are errors, and so is a hash without its algorithm."""
    with pytest.raises(FormatError, match=r"hash|nix32"):
        NixHash.parse(text)


@pytest.mark.parametrize(("digest", "algorithm"), [(b"short", "sha256"), (_HELLO, "sha1"), (_HELLO, "git")])
def test_a_hash_is_right_by_construction(digest: bytes, algorithm: str) -> None:
    """No other code has to look at the length again."""
    with pytest.raises(FormatError, match="hash"):
        NixHash(digest, algorithm)
