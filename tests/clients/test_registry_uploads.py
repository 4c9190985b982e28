"""Pushing blobs, against the double of GHCR, with what goes wrong on the way."""

import asyncio
import random
import traceback
from itertools import product
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.clients.http.request_body import Body
from nixcache_oci.clients.registry import uploads
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import NAME, opened, owner, read
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_faults import FaultKind
from tests.support.process import open_files_in, until
from tests.support.slow_line import slow_line
from tests.support.upstream_server import serve

_CONTENT = random.Random(2).randbytes(3 * 1024 * 1024)
_DIGEST = Digest.of(_CONTENT)


@pytest.fixture(params=["bytes", "file"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> bytes | Path:
    if request.param == "bytes":
        return _CONTENT
    path = tmp_path / "blob"
    path.write_bytes(_CONTENT)
    return path


@pytest.mark.parametrize("relative", [True, False])
async def test_a_blob_goes_up_in_one_put(
    ghcr: GhcrDouble, pusher: Registry, tmp_path: Path, source: bytes | Path, *, relative: bool
) -> None:
    """One POST and one PUT with its length, whatever form the session's address has."""
    ghcr.relative_location = relative
    await pusher.push_blob(_DIGEST, source)
    await pusher.push_blob(_DIGEST, source)
    assert await read(pusher, _DIGEST) == _CONTENT
    puts = [record for record in ghcr.requests if record.operation == "upload-put"]
    assert [record.headers["Content-Length"] for record in puts] == [str(len(_CONTENT))] * 2
    assert ghcr.count("blob-head") == 0  # to ask before is the caller's decision
    assert not open_files_in(tmp_path)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [*product(["upload-post", "upload-put"], ["refuse", "reset", "status"]), ("upload-put", "cut_request")],
)
async def test_an_upload_starts_anew(
    ghcr: GhcrDouble, pusher: Registry, source: bytes | Path, operation: str, kind: FaultKind
) -> None:
    """The source is read again from its start, in a new session: one with half a blob is left behind."""
    ghcr.fault(operation, kind, times=2, status=502, after=1_000_000)
    await pusher.push_blob(Digest.of(b""), b"")  # nothing is a blob, too
    await pusher.push_blob(_DIGEST, source)
    assert ghcr.blobs(NAME) == {Digest.of(b""): 0, _DIGEST: len(_CONTENT)}
    assert ghcr.count("upload-put") <= 4


async def test_the_time_of_sending_is_not_a_matter_of_patience(ghcr: GhcrDouble) -> None:
    """A blob that took minutes and broke at its end is worth another try."""
    ghcr.bandwidth = 3 * len(_CONTENT)  # a third of a second for each try
    ghcr.fault("upload-put", "cut_request", after=len(_CONTENT) - 1000)
    async with opened(ghcr.host, owner(ghcr), push=True, patience=0.3) as registry:
        await registry.push_blob(_DIGEST, _CONTENT)
    assert ghcr.blobs(NAME) == {_DIGEST: len(_CONTENT)}


async def test_an_upload_that_fails_does_not_show_its_address(
    ghcr: GhcrDouble, pusher: Registry, tmp_path: Path
) -> None:
    """A session's address may be as good as a password: neither a cut nor a file that shrank prints it."""
    path = tmp_path / "blob"
    path.write_bytes(_CONTENT)
    ghcr.fault("upload-put", "cut_request", after=1000, times=None)
    with pytest.raises(RegistryError, match="the connection") as cut:
        await pusher.push_blob(_DIGEST, path)
    ghcr.clear_faults()
    with pytest.raises(RegistryError, match="the connection broke") as shrunk:
        await pusher._uploads.push(_DIGEST, Body(path, len(_CONTENT) + 1))
    shown = ["".join(traceback.format_exception(raised.value)) for raised in (cut, shrunk)]
    assert not [text for text in shown if "/uploads/" in text]


async def test_a_blob_that_made_it_is_not_sent_again(ghcr: GhcrDouble, pusher: Registry) -> None:
    """When only the answer was lost, a look at the blob tells."""
    ghcr.fault("upload-put", "lost")
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert ghcr.count("upload-put") == 1


@pytest.mark.parametrize("code", ["BLOB_UPLOAD_UNKNOWN", "BLOB_UNKNOWN"])
async def test_a_lost_session_is_replaced(ghcr: GhcrDouble, pusher: Registry, code: str) -> None:
    """GHCR forgets sessions; that is no NotFoundError, for nothing was looked up."""
    body = f'{{"errors":[{{"code":"{code}"}}]}}'.encode()
    ghcr.fault("upload-put", "status", status=404, body=body)
    await pusher.push_blob(_DIGEST, _CONTENT)
    ghcr.fault("upload-put", "status", status=404, body=body, times=None)
    with pytest.raises(RegistryError, match=rf"push blob {Digest.of(b'x')}: .*404 {code}") as raised:
        await pusher.push_blob(Digest.of(b"x"), b"x")
    assert not isinstance(raised.value, NotFoundError)
    assert ghcr.blobs(NAME) == {_DIGEST: len(_CONTENT)}


async def test_a_token_that_ran_out_meanwhile_is_renewed(
    ghcr: GhcrDouble, pusher: Registry, source: bytes | Path
) -> None:
    """An upload lasts longer than a token, so the next PUT may be refused at first."""
    await pusher.push_blob(Digest.of(b"x"), b"x")
    ghcr.expire_tokens()
    ghcr.fault("upload-post", "status", status=202, headers={"Location": f"/v2/{NAME}/blobs/uploads/lost"})
    await pusher.push_blob(_DIGEST, source)
    assert _DIGEST in ghcr.blobs(NAME)


async def test_wrong_bytes_are_refused_for_good(ghcr: GhcrDouble, pusher: Registry) -> None:
    """The registry checks the digest; sending the same again would not help."""
    with pytest.raises(RegistryError, match="400 DIGEST_INVALID") as raised:
        await pusher.push_blob(Digest.of(b"other"), b"content")
    assert (raised.value.code, raised.value.is_temporary) == ("DIGEST_INVALID", False)
    assert ghcr.count("upload-put") == 1


async def test_a_slow_upload_is_no_trouble(ghcr: GhcrDouble) -> None:
    """It may take far longer than the limit on standing still."""
    content = _CONTENT * 4
    ghcr.bandwidth = 10_000_000
    async with opened(ghcr.host, owner(ghcr), push=True, stall=0.4) as registry:
        await registry.push_blob(Digest.of(content), content)
    assert ghcr.count("upload-put") == 1


async def test_a_slow_line_is_no_trouble(ghcr: GhcrDouble) -> None:
    """What the kernel still holds is not sent yet, and goes out byte by byte."""
    content = bytes(240_000)
    async with (
        slow_line(ghcr.host, 150_000) as host,
        opened(host, owner(ghcr), push=True, patience=0.1, stall=0.5) as registry,
    ):
        await registry.push_blob(Digest.of(content), content)
    assert ghcr.count("upload-put") == 1


async def test_a_stalled_upload_ends(sparse: Path) -> None:
    """A registry that stops reading is noticed, though the bytes are not all sent yet."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method == "POST":
            return web.Response(status=202, headers={"Location": "/upload?state=a%2Bb"})
        if request.method == "PUT":
            await until(lambda: request.transport is None or request.transport.is_closing())
        return web.Response(status=404)

    async with (
        serve(answer) as url,
        opened(url.removeprefix("http://"), None, push=True, patience=0.01, stall=0.3) as registry,
    ):
        with pytest.raises(RegistryError, match="stalled") as raised:
            await registry.push_blob(Digest.of(b"x"), sparse)
    assert raised.value.is_temporary
    assert not open_files_in(sparse.parent)


async def test_a_cancelled_upload_closes_its_file(ghcr: GhcrDouble, pusher: Registry, tmp_path: Path) -> None:
    """Nothing goes on behind who hung up."""
    path = tmp_path / "blob"
    path.write_bytes(_CONTENT * 8)  # more than the sockets' buffers take
    ghcr.bandwidth = 1_000_000
    pushing = asyncio.create_task(pusher.push_blob(_DIGEST, path))
    await until(lambda: open_files_in(tmp_path))
    await asyncio.sleep(0.1)
    pushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pushing
    assert not open_files_in(tmp_path)


@pytest.mark.parametrize(
    ("location", "put"),
    [
        ("/upload?state=a%2Bb%2f&x=", "/upload?state=a%2Bb%2f&x=&digest=sha256%3A"),
        ("upload/1", f"/v2/{NAME}/blobs/uploads/upload/1?digest=sha256%3A"),
        ("/up%20load#frag", "/up%20load?digest=sha256%3A"),
    ],
)
async def test_a_sessions_address_is_kept_byte_for_byte(location: str, put: str) -> None:
    """Its state may be signed; only the digest is added."""
    paths: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        paths.append(request.raw_path)
        async for _ in request.content.iter_any():
            pass
        status = 202 if request.method == "POST" else 201
        return web.Response(status=status, headers={"Location": location})

    async with serve(answer) as url, opened(url.removeprefix("http://"), None, push=True) as registry:
        await registry.push_blob(_DIGEST, _CONTENT)
    assert paths == [f"/v2/{NAME}/blobs/uploads/", put + _DIGEST.hex]


async def test_an_upload_elsewhere_gets_no_token(ghcr: GhcrDouble) -> None:
    """A session may lie at another server; the registry's token is not for it."""
    location = f"http://{ghcr.storage_host}/session?sig=x"
    ghcr.fault("upload-post", "status", skip=1, times=None, status=202, headers={"Location": location})
    async with opened(ghcr.host, owner(ghcr), push=True, patience=0.1) as registry:
        with pytest.raises(RegistryError, match="the storage behind the registry answered 403"):
            await registry.push_blob(_DIGEST, _CONTENT)
    assert not ghcr.violations


async def test_many_blobs_go_up_at_once(ghcr: GhcrDouble, pusher: Registry) -> None:
    """One client serves a whole publish."""
    blobs = {Digest.of(content): content for content in (str(number).encode() * 999 for number in range(100))}
    await asyncio.gather(*(pusher.push_blob(digest, content) for digest, content in blobs.items()))
    assert set(ghcr.blobs(NAME)) == set(blobs)
    assert ghcr.count("token") == 1


async def test_what_was_pushed_a_moment_ago_is_found(ghcr: GhcrDouble, pusher: Registry) -> None:
    """Just after a push GHCR may say "blob unknown": this client knows better."""
    ghcr.put_manifest(NAME, "cache-index", b"{}")
    ghcr.lag_answers = 2
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert await pusher.stat_blob(_DIGEST) == len(_CONTENT)


async def test_a_session_is_opened_ahead(ghcr: GhcrDouble, pusher: Registry) -> None:
    """Each blob takes one of those that are there, and the PUT is all that it waits for."""
    await pusher.push_blob(Digest.of(b""), b"")
    ghcr.reset_requests()
    pusher.prepare_push(1)
    pusher.prepare_push(2)
    await until(lambda: [record.status for record in ghcr.requests] == [202, 202])
    for content in (b"one", b"two", b"three"):
        await pusher.push_blob(Digest.of(content), content)
    asked = [record.operation for record in ghcr.requests]
    assert asked == ["upload-post"] * 2 + ["upload-put"] * 2 + ["upload-post", "upload-put"]


async def test_a_session_that_cannot_be_opened_ahead_is_no_error_yet(
    ghcr: GhcrDouble, pusher: Registry
) -> None:
    """Whoever has a blob to send asks again."""
    ghcr.fault("upload-post", "status", skip=1, status=400)
    pusher.prepare_push(1)
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert ghcr.blobs(NAME) == {_DIGEST: len(_CONTENT)}


async def test_a_session_that_was_lost_meanwhile_is_replaced(ghcr: GhcrDouble, pusher: Registry) -> None:
    """As when the registry was started anew: the next try opens one of its own."""
    pusher.prepare_push(1)
    await until(lambda: ghcr.count("upload-post") >= 2)  # the first has no token yet
    ghcr.stop()
    ghcr.start()
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert ghcr.blobs(NAME) == {_DIGEST: len(_CONTENT)}
    assert ghcr.count("upload-post") == 3


async def test_an_old_session_is_not_used(
    ghcr: GhcrDouble, pusher: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It might run out while a large blob is on its way."""
    monkeypatch.setattr(uploads, "_SESSION_SECONDS", 0)
    await pusher.push_blob(Digest.of(b""), b"")
    pusher.prepare_push(1)
    await pusher.push_blob(_DIGEST, _CONTENT)
    assert ghcr.count("upload-put") == 2


async def test_a_session_that_is_being_opened_holds_nobody_up(ghcr: GhcrDouble) -> None:
    """Who gives the repository back does not wait for it."""
    ghcr.fault("upload-post", "stall", times=None)
    async with asyncio.timeout(20):
        async with opened(ghcr.host, owner(ghcr), push=True) as registry:
            registry.prepare_push(2)
            await until(lambda: ghcr.count("upload-post"))
    assert asyncio.all_tasks() == {asyncio.current_task()}
