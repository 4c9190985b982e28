"""Which URLs below an upstream are followed: those that a narinfo named, and what cannot be but a NAR."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.upstream.address import UrlSigner
from nixcache_oci.errors import FormatError

KEY = "0123456789abcdef"
SIGNER = UrlSigner(bytes(32))
NIX32, HEX, PART = "0" * 52, "0" * 64, "0" * 32

HASHES = [
    *(f"nar/{NIX32}.nar", f"nar/{NIX32}.nar.xz", f"nar/{HEX}.nar.zst", f"nar/{PART}.nar"),
    f"nar/{PART}-{NIX32}.nar",
]
CALLED = ["nar/known.nar", "x.nar.bz2", f"other/{NIX32}.nar.xz", f"nar/{NIX32[1:]}.nar", f"nar/{NIX32}0.nar"]
NEVER = [
    *("api/v1/users", "secrets/prod.env", f"{PART}.narinfo", f"nar/{NIX32}", f"nar/{NIX32}.nar.", "nar/.nar"),
    *(
        f"nar/{NIX32}.nar/x",
        f"nar/{NIX32}.nar.xz.sig",
        f"mac-{PART}/api/v1/users",
        "mac-/x",
        f"mac-{PART}",
        "",
    ),
]


def followed(path: str, query: str = "", *, has_password: bool) -> str | None:
    try:
        return SIGNER.named_path(KEY, path, query, has_password=has_password)
    except FormatError:
        return None


@pytest.mark.parametrize("has_password", [False, True])
@pytest.mark.parametrize("path", [*HASHES, *CALLED, *NEVER[:-1]])
@pytest.mark.parametrize("query", ["", "page=1", "delete=1&x=%2F"])
def test_what_a_narinfo_named_is_followed(path: str, query: str, *, has_password: bool) -> None:
    """Whatever it is, and with its own query only."""
    signed = SIGNER.sign(KEY, path, query)
    assert followed(signed, query, has_password=has_password) == path
    if path in NEVER:
        assert followed(signed, query + "&more=1", has_password=has_password) is None
        assert followed(f"{signed}/more", query, has_password=has_password) is None


@pytest.mark.parametrize("path", NEVER)
def test_what_no_narinfo_named_is_not(path: str) -> None:
    """Neither as it is nor behind a code that is made up, or of another URL, secret or upstream."""
    codes = [
        SIGNER.sign(KEY, "x", "").partition("/")[0],
        UrlSigner(bytes(31) + b"\1").sign(KEY, path, "").partition("/")[0],
        SIGNER.sign(KEY[::-1], path, "").partition("/")[0],
        f"mac-{'0' * 32}",
    ]
    for has_password in (False, True):
        assert followed(path, has_password=has_password) is None
        for code in codes:
            assert followed(f"{code}/{path}", has_password=has_password) is None


@pytest.mark.parametrize("prefix", ["", f"mac-{'0' * 32}/"])
def test_urls_of_former_days(prefix: str) -> None:
    """With a password only names that nobody guesses, else whatever is called a NAR; no other query."""
    for path in HASHES:
        for query in ("", f"hash={PART}"):
            assert followed(prefix + path, query, has_password=True) == path
            assert followed(prefix + path, query, has_password=False) == path
        for query in ("delete=1", f"hash={PART}&delete=1", "hash=x"):
            assert followed(prefix + path, query, has_password=True) is None
            assert followed(prefix + path, query, has_password=False) is None
    for path in CALLED:
        assert followed(prefix + path, has_password=True) is None
        assert followed(prefix + path, has_password=False) == path


@given(st.text("ab/%2BF+", max_size=12))
def test_a_path_may_be_spelled_in_another_way(path: str) -> None:
    """Clients decode and encode what they read, which changes nothing in what is named."""
    signed = SIGNER.sign(KEY, path.replace("+", "%2B"), "")
    assert followed(signed.replace("%2B", "+"), has_password=True) == path.replace("%2B", "+")
