"""Every client against every answer that makes no sense: its own error, in one line, and nothing else.

The other side chooses what the libraries below us raise: over a name that no codec takes, a port beyond all
ports, a date of the year 0. None of that may get past the client as it is.
"""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import pytest

from nixcache_oci.clients.binary_cache.web import WebCache
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.github.packages import GithubPackages
from nixcache_oci.clients.proxy_status import ProxyClient, ProxyStatus
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.registry.probe import Greeting, find_token_error, greet, try_upload
from nixcache_oci.clients.upstream.address import NarMode, Upstream, UrlSigner, parse_upstream, rewrite
from nixcache_oci.errors import Error, UpstreamError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.challenge import Challenge
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_MANIFEST
from nixcache_oci.oci.reference import RegistryReference
from tests.clients.registry_helper import MANIFEST, NAME
from tests.hostile.answers import ADDRESSES, ANSWERS
from tests.hostile.story import Tally
from tests.support.upstream_server import HASH_PART, Talk, answering, asking, narinfo_text, serve, talk

_DIGEST: Final = Digest.of(b"content")
_SECRET: Final = Credentials("user", "hunter2", "test")
_LONGEST_LINE: Final = 2_000
_SECONDS: Final = 20

Call = Callable[[str], Awaitable[object]]


def saying(*answers: bytes) -> Talk:
    """Give one answer after another, the last one to all further requests, each over its own connection."""
    given = 0

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal given
        head = await reader.readuntil(b"\r\n\r\n")
        await _skip_body(head, reader)
        answer = answers[min(given, len(answers) - 1)]
        given += 1
        writer.write(answer)

    return converse


async def _skip_body(head: bytes, reader: asyncio.StreamReader) -> None:
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length or b"0"))


@asynccontextmanager
async def registry_at(url: str) -> AsyncIterator[Registry]:
    registry = Registry(_reference(url), _SECRET, push=True, patience=0, stall_seconds=5, attempts=1)
    try:
        yield registry
    finally:
        await registry.close()


def _reference(url: str) -> RegistryReference:
    return RegistryReference(url.removeprefix("http://"), plain_http=True, repository=NAME)


async def _read_blob(url: str) -> None:
    async with registry_at(url) as registry, registry.open_blob(_DIGEST, 3, 5) as blob:
        async for _ in blob.chunks:
            pass


async def _upload(url: str) -> None:
    async with registry_at(url) as registry:
        registry.prepare_push(1)
        await registry.push_blob(_DIGEST, b"content")


async def _list_versions(url: str) -> None:
    packages = GithubPackages(url, _reference(url), _SECRET, patience=0, stall_seconds=5)
    try:
        await packages.untagged()
    finally:
        await packages.close()


async def _read_nar(url: str) -> None:
    async with (
        asking(url, nar_seconds=5, stall_seconds=5, resume_pause_seconds=0) as upstreams,
        upstreams.open_nar(parse_upstream(url).key, "nar/x.nar", start=3, end=5) as nar,
    ):
        async for _ in nar.chunks:
            pass


async def _look_up(url: str) -> None:
    async with asking(url) as upstreams:
        await upstreams.find(HASH_PART)


async def _head_nar(url: str) -> None:
    async with asking(url, nar_seconds=5) as upstreams:
        await upstreams.head_nar(parse_upstream(url).key, "nar/x.nar")


@asynccontextmanager
async def web_cache(url: str) -> AsyncIterator[WebCache]:
    cache = WebCache(parse_upstream(url), pauses_seconds=(0,))
    try:
        yield cache
    finally:
        await cache.close()


async def _import_narinfo(url: str) -> None:
    async with web_cache(url) as cache:
        await cache.read_narinfo(HASH_PART)


async def _import_nar(url: str) -> None:
    async with web_cache(url) as cache, cache.open_nar("nar/x") as chunks:
        async for _ in chunks:
            pass


def with_registry(ask: Callable[[Registry], Awaitable[object]]) -> Call:
    """Make a call of a method of the registry client."""

    async def call(url: str) -> None:
        async with registry_at(url) as registry:
            await ask(registry)

    return call


CALLS: Final[dict[str, Call]] = {
    "manifest": with_registry(lambda registry: registry.get_manifest("cache-index")),
    "manifest by digest": with_registry(lambda registry: registry.get_manifest(str(_DIGEST))),
    "resolve": with_registry(lambda registry: registry.resolve("cache-index")),
    "tags": with_registry(lambda registry: registry.list_tags()),
    "size": with_registry(lambda registry: registry.stat_blob(_DIGEST)),
    "push a manifest": with_registry(lambda registry: registry.push_manifest("a", MANIFEST, IMAGE_MANIFEST)),
    "delete": with_registry(lambda registry: registry.delete_manifest(_DIGEST)),
    "blob": _read_blob,
    "upload": _upload,
    "greeting": lambda url: greet(_reference(url)),
    "versions": _list_versions,
    "narinfo": _look_up,
    "NAR": _read_nar,
    "head of a NAR": _head_nar,
    "imported narinfo": _import_narinfo,
    "imported NAR": _import_nar,
}


async def check_own(call: Awaitable[object], what: str) -> None:
    """It succeeds, or fails by an error of ours that can be shown, within seconds."""
    try:
        async with asyncio.timeout(_SECONDS):
            await call
    except Error as error:
        text = str(error)
        assert text.isprintable(), (what, text)
        assert len(text) <= _LONGEST_LINE, (what, text)
        assert _SECRET.password not in text
    except TimeoutError:
        raise AssertionError(f"{what}: took over {_SECONDS} s") from None
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error


def check_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """No task died unseen, no line is long or holds control characters."""
    gc.collect()
    for record in caplog.records:
        text = record.getMessage()
        assert record.exc_info is None, text
        assert record.levelno < logging.ERROR, text
        assert text.isprintable(), text
        assert len(text) <= _LONGEST_LINE, text


@pytest.mark.parametrize("name", CALLS)
async def test_an_answer_that_makes_no_sense_is_the_clients_own_error(
    name: str, caplog: pytest.LogCaptureFixture, data: Tally
) -> None:
    """Whatever comes in place of the first answer, and of each that follows it."""
    for what, answer in ANSWERS.items():
        async with talk(saying(answer)) as url:
            await check_own(CALLS[name](url), f"{name}: {what}")
    check_quiet(caplog)
    data.add(f"answers without sense: {name}", "the client's own error, in one line", times=len(ANSWERS))


async def test_a_token_service_may_say_anything(caplog: pytest.LogCaptureFixture) -> None:
    """Its answers are read like the registry's."""
    for what, answer in ANSWERS.items():
        async with talk(saying(answer)) as url:
            challenge = Challenge("bearer", {"realm": f"{url}/token"})
            asked = find_token_error(_reference(url), _SECRET, Greeting(None, (challenge,), is_public=False))
            await check_own(asked, what)
    check_quiet(caplog)


async def test_an_upload_may_be_sent_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    """Where a session is to be found is a stranger's word, as is what answers there."""
    for address in ADDRESSES:
        head = b"HTTP/1.1 202 x\r\nContent-Length: 0\r\nConnection: close\r\nLocation: "
        async with talk(saying(head + address + b"\r\n\r\n")) as url:
            await check_own(_upload(url), repr(address))
            await check_own(try_upload(_reference(url), _SECRET), repr(address))
    check_quiet(caplog)


async def test_nonsense_of_one_upstream_never_hides_what_another_has() -> None:
    """Whatever it answers, it is that upstream's failure alone, and is counted."""
    good = answering(text=narinfo_text(), seconds=0.02)  # the other one's answer comes first
    async with serve(good) as other:
        for what, answer in ANSWERS.items():
            async with talk(saying(answer)) as url, asking(url, other) as upstreams:
                found = await upstreams.find(HASH_PART)
                assert found is not None, what
                assert found.store_path.hash_part == HASH_PART
                assert all(each.last_error.isprintable() for each in upstreams.health()), what


async def test_a_fault_of_ours_over_one_upstream_does_not_hide_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even an exception that nobody foresaw: that upstream could not say."""
    strange = narinfo_text(url="nar/strange")

    def rewriting(narinfo: NarInfo, upstream: Upstream, mode: NarMode, signer: UrlSigner) -> NarInfo:
        if narinfo.url == "nar/strange":
            raise RuntimeError("a fault")
        return rewrite(narinfo, upstream, mode, signer)

    monkeypatch.setattr("nixcache_oci.clients.upstream.narinfo_client.rewrite", rewriting)
    good = answering(text=narinfo_text(), seconds=0.02)
    async with serve(answering(text=strange)) as url, serve(good) as other:
        async with asking(url, other) as upstreams:
            assert await upstreams.find(HASH_PART) is not None
        async with asking(url) as upstreams:
            with pytest.raises(UpstreamError, match="a fault"):
                await upstreams.find(HASH_PART)


async def test_our_commands_meet_whatever_listens_at_the_proxys_port(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another user's program may: it gets no traceback out of doctor."""
    priority = b"StoreDir: /nix/store\nPriority: " + b"9" * 5_000
    own = {"a priority of 5000 digits": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + priority}
    for what, answer in (ANSWERS | own).items():
        async with talk(saying(answer)) as url, ProxyClient(url) as proxy:
            await check_own(proxy.status(), what)
            await check_own(proxy.is_healthy(), what)
    status = b'{"index": {"ready": true}, "public_keys": {}}'
    assert ProxyStatus.parse(status, priority.decode()).priority is None
    check_quiet(caplog)


@pytest.mark.parametrize(
    "location", [b"http://" + b"a" * 300 + b"/", b"http://" + b"a" * 64 + b".x/", b"http://xn--\xff/"]
)
async def test_nonsense_of_an_upstream_counts_as_a_failure(location: bytes) -> None:
    """It shows in the status; it is an answer, though, and the other paths are asked for."""
    answer = b"HTTP/1.1 302 x\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
    async with talk(saying(answer)) as url, asking(url) as upstreams:
        for _ in range(3):
            with pytest.raises(UpstreamError):
                await upstreams.find(HASH_PART)
        [health] = upstreams.health()
        assert (health.failures, health.state) == (3, "closed")
