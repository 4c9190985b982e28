"""Which URLs below an upstream are followed: those that a narinfo named, and what cannot be but a NAR."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.clients.upstream.address import UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import FormatError, UpstreamError, UpstreamNotFoundError
from tests.support.upstream_server import Asked, answering, refusing, serve

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


BY_HASH = f"nar/{'1' * 52}.nar.xz"
BY_NAME = "files/secret"


async def read(
    path: str, key: str, configured: Sequence[str], former: Sequence[str] = (), *, is_signed: bool = True
) -> bytes:
    upstreams = Upstreams(
        [parse_upstream(url) for url in configured],
        former=[parse_upstream(url) for url in former],
        signer=SIGNER,
    )
    asked = SIGNER.sign(key, path, "") if is_signed else path
    try:
        head = await upstreams.head_nar(key, asked)
        assert head.status == 200
        async with upstreams.open_nar(key, asked) as nar:
            return b"".join([chunk async for chunk in nar.chunks])
    finally:
        await upstreams.close()


def key_of(url: str) -> str:
    return parse_upstream(url).key


@pytest.mark.parametrize("path", [BY_HASH, BY_NAME])
async def test_a_former_upstream_is_still_asked(path: str) -> None:
    """By another name, another scheme, or gone altogether: what a narinfo named is served for 30 days."""
    asked: list[Asked] = []
    async with serve(answering(text="bytes", asked=asked)) as url:
        for configured in ((), (url.replace("127.0.0.1", "localhost"),)):
            assert await read(path, key_of(url), configured, [url]) == b"bytes"


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("is_signed", [False, True])
async def test_what_is_named_by_hash_may_come_from_another(is_known: bool, is_signed: bool) -> None:
    """Its old host may be gone, or nobody may have remembered it: Nix checks what comes."""
    gone = refusing()
    asked: list[Asked] = []
    async with serve(answering(text="bytes", asked=asked)) as url:
        former = [gone] if is_known else []
        assert await read(BY_HASH, key_of(gone), [url], former, is_signed=is_signed) == b"bytes"


async def test_what_another_upstream_named_is_not_asked_of_one_with_a_password() -> None:
    """A stranger's narinfo would read what the password guards; a former one gets no password either."""
    gone = refusing()
    asked: list[Asked] = []
    async with serve(answering(text="bytes", asked=asked)) as url:
        private = url.replace("//", "//user:hidden@")
        for path, former, kind in ((BY_NAME, [gone], UpstreamError), (BY_NAME, [], UpstreamNotFoundError)):
            with pytest.raises(kind):
                await read(path, key_of(gone), [private], former)
        assert asked == []
        await read(BY_NAME, key_of(url), ["https://user:hidden@b.example/"], [url])
        assert [one.headers.get("Authorization") for one in asked] == [None, None]


async def test_the_first_answer_is_what_is_told() -> None:
    """Where nobody has it, what the former upstream said counts."""
    asked: list[Asked] = []
    broken = answering(status=500, asked=asked)
    async with serve(answering(status=404)) as first, serve(broken) as second:
        with pytest.raises(UpstreamNotFoundError, match="status 404"):
            await read(BY_HASH, key_of(first), [second], [first])
        assert len(asked) == 1


async def test_http_becomes_https_and_never_the_other_way() -> None:
    """A former https upstream's paths are not asked for in the clear of its namesake."""
    asked: list[Asked] = []
    async with serve(answering(text="bytes", asked=asked)) as url:
        secure = url.replace("http:", "https:")
        with pytest.raises(UpstreamError):
            await read(BY_NAME, key_of(secure), [url], [secure])
    assert asked == []
