"""NAR URLs that clients remember, after the configuration has changed."""

from collections.abc import Sequence

import pytest
from aiohttp import web

from nixcache_oci.clients.upstream.address import Upstream, UrlSigner, parse_upstream
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import UpstreamError, UpstreamNotFoundError
from tests.support.upstream_server import Handler, refusing, serve

SIGNER = UrlSigner(bytes(32))
BY_HASH = f"nar/{'1' * 52}.nar.xz"
BY_NAME = "files/secret"


class Cache:
    """Has both NARs; notes what was asked with which credentials."""

    def __init__(self, status: int = 200) -> None:
        self.asked: list[tuple[str, str]] = []
        self._status = status

    def handler(self) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            self.asked.append((request.path, request.headers.get("Authorization", "")))
            return web.Response(status=self._status, body=b"bytes")

        return handle


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
    cache = Cache()
    async with serve(cache.handler()) as url:
        for configured in ((), (url.replace("127.0.0.1", "localhost"),)):
            assert await read(path, key_of(url), configured, [url]) == b"bytes"


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("is_signed", [False, True])
async def test_what_is_named_by_hash_may_come_from_another(is_known: bool, is_signed: bool) -> None:
    """Its old host may be gone, or nobody may have remembered it: Nix checks what comes."""
    gone = refusing()
    cache = Cache()
    async with serve(cache.handler()) as url:
        former = [gone] if is_known else []
        assert await read(BY_HASH, key_of(gone), [url], former, is_signed=is_signed) == b"bytes"


async def test_what_another_upstream_named_is_not_asked_of_one_with_a_password() -> None:
    """A stranger's narinfo would read what the password guards; a former one gets no password either."""
    gone = refusing()
    cache = Cache()
    async with serve(cache.handler()) as url:
        private = url.replace("//", "//user:hidden@")
        for path, former, kind in ((BY_NAME, [gone], UpstreamError), (BY_NAME, [], UpstreamNotFoundError)):
            with pytest.raises(kind):
                await read(path, key_of(gone), [private], former)
        assert cache.asked == []
        await read(BY_NAME, key_of(url), ["https://user:hidden@b.example/"], [url])
        assert [authorization for _, authorization in cache.asked] == ["", ""]


async def test_the_first_answer_is_what_is_told() -> None:
    """Where nobody has it, what the former upstream said counts."""
    missing, broken = Cache(404), Cache(500)
    async with serve(missing.handler()) as first, serve(broken.handler()) as second:
        with pytest.raises(UpstreamNotFoundError, match="status 404"):
            await read(BY_HASH, key_of(first), [second], [first])
        assert len(broken.asked) == 1


async def test_http_becomes_https_and_never_the_other_way() -> None:
    """A former https upstream's paths are not asked for in the clear of its namesake."""
    cache = Cache()
    async with serve(cache.handler()) as url:
        secure = url.replace("http:", "https:")
        with pytest.raises(UpstreamError):
            await read(BY_NAME, key_of(secure), [url], [secure])
    assert cache.asked == []


def test_keys_do_not_depend_on_credentials() -> None:
    """So that a password that is changed changes no URL."""
    assert key_of("https://a.example") == key_of("https://user:pass@a.example/")
    assert isinstance(parse_upstream("https://a.example"), Upstream)
