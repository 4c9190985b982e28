"""What a publisher is told when a registry refuses: one line that names what to do, and no secret."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web as server
from aioresponses import aioresponses

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.registry.errors import ErrorResponse, RequestContext, find_hint
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_MANIFEST
from tests.clients.registry_helper import MANIFEST, NAME, count, opened, owner, reader
from tests.support.ghcr import GhcrDouble
from tests.support.process import open_files_in
from tests.support.upstream_server import serve, talk

_CONTENT = b"content"
_DIGEST = Digest.of(_CONTENT)
_SETTINGS = "https://github.com/orgs/octocat/packages/container/hello%2Fnix-cache/settings"
_WORKFLOW = "permissions: packages: write"
_ASKER = RequestContext("ghcr.io", NAME, push=True, source="GITHUB_TOKEN")
_READER = replace(_ASKER, push=False, source="GH_TOKEN")
_NOBODY = replace(_ASKER, push=False, source=None)
_QUAY = RequestContext("quay.io", "team/x", push=True, source="config.json")


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        double.put_manifest(NAME, "cache-index", MANIFEST)
        yield double


async def _push_blob(repository: Repository) -> None:
    await repository.push_blob(_DIGEST, _CONTENT)


async def _push_manifest(repository: Repository) -> None:
    await repository.push_manifest("segment", MANIFEST, IMAGE_MANIFEST)


async def _look(repository: Repository) -> None:
    await repository.stat_blob(_DIGEST)


async def _list(repository: Repository) -> None:
    await repository.list_tags()


_Push = Callable[[Repository], Awaitable[None]]
_PUSHES = {"push blob": _push_blob, "push manifest segment": _push_manifest}
_ALL = {**_PUSHES, "look for blob": _look, "list tags": _list}


async def _refused(
    ghcr: GhcrDouble,
    call: _Push = _push_blob,
    credentials: Credentials | None = None,
    *,
    is_anonymous: bool = False,
) -> RegistryError:
    """Push with credentials that may, unless told otherwise; gives the error."""
    asking = None if is_anonymous else credentials or owner(ghcr)
    async with opened(ghcr.host, asking, push=True, patience=0.5) as registry:
        with pytest.raises(RegistryError) as raised:
            await call(registry)
    assert "\n" not in str(raised.value)
    assert asking is None or asking.password not in str(raised.value)
    assert f"{ghcr.host}/{NAME}: " in str(raised.value)
    return raised.value


# Who asked


@pytest.mark.parametrize(("operation", "call"), _ALL.items())
async def test_anonymous_publishers_learn_what_to_set(ghcr: GhcrDouble, operation: str, call: _Push) -> None:
    """Whatever is asked first, the line says that there are no credentials, and where to set them."""
    error = await _refused(ghcr, call, is_anonymous=True)
    assert str(error).startswith(operation)
    assert "asked anonymously, and pushing needs credentials" in str(error)
    assert f"set NIXCACHE_TOKEN_FILE or GITHUB_TOKEN, or run docker login {ghcr.host}" in str(error)
    assert (error.status, error.code, error.is_temporary) == (403, "DENIED", False)


@pytest.mark.parametrize(("operation", "call"), _ALL.items())
async def test_wrong_credentials_are_to_be_renewed(ghcr: GhcrDouble, operation: str, call: _Push) -> None:
    """It is about them, not about the package; nobody becomes anonymous, which would hide the reason."""
    ghcr.private = False
    wrong = Credentials("anyone", "ghp_wrong", "NIXCACHE_TOKEN_FILE (/run/token)")
    error = str(await _refused(ghcr, call, wrong))
    assert error.startswith(operation)
    assert "no token: 403 DENIED" in error
    assert "asked with NIXCACHE_TOKEN_FILE (/run/token), which is wrong or has expired" in error
    assert "renew it" in error
    assert ghcr.count("token") == 1


@pytest.mark.parametrize(("operation", "call"), _PUSHES.items())
async def test_readers_learn_that_they_may_not_write(ghcr: GhcrDouble, operation: str, call: _Push) -> None:
    """The credentials are good, and what they lack is named."""
    error = await _refused(ghcr, call, reader(ghcr))
    assert str(error).startswith(operation)
    assert "asked with GH_TOKEN, which needs write access" in str(error)
    assert "expired" not in str(error)


# What GHCR says


@pytest.mark.parametrize("call", _PUSHES.values())
async def test_a_package_linked_elsewhere_is_opened_in_its_settings(ghcr: GhcrDouble, call: _Push) -> None:
    """No API does it: the line leads to the page, whose address has the package's name in one piece."""
    ghcr.is_linked_elsewhere = True
    error = await _refused(ghcr, call)
    assert (error.status, error.code, error.is_temporary) == (403, "DENIED", False)
    assert "linked to another repository or was first pushed manually" in str(error)
    assert f"Manage Actions access, add the repository with role Write, at {_SETTINGS}" in str(error)
    assert _WORKFLOW in str(error)


async def _refuse(web: aioresponses, operation: str, status: int, body: str) -> RegistryError:
    """Refuse one step of a push, as a registry that wants no token; gives the error."""
    base = f"http://registry.example/v2/{NAME}"
    steps = {
        "open": ("POST", f"{base}/blobs/uploads/"),
        "send": ("PUT", f"{base}/session?digest={_DIGEST}"),
        "manifest": ("PUT", f"{base}/manifests/segment"),
    }
    method, url = steps[operation]
    headers = {"Location": "https://login.example/secret?x=y"}
    web.add(url, method, status=status, body=body, headers=headers)
    web.post(steps["open"][1], status=202, headers={"Location": f"{base}/session"})
    credentials = Credentials("anyone", "ghp_secret", "GITHUB_TOKEN")
    async with opened("registry.example", credentials, push=True, patience=0) as registry:
        with pytest.raises(RegistryError) as raised:
            await (_push_manifest if operation == "manifest" else _push_blob)(registry)
    assert not isinstance(raised.value, NotFoundError)
    assert "secret" not in str(raised.value)
    assert (raised.value.status, count(web, url, method)) == (status, 1)
    return raised.value


def _document(code: str, message: str = "") -> str:
    return json.dumps({"errors": [{"code": code, "message": message}]})


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("installation not allowed to Write organization package", _WORKFLOW),
        ("installation not allowed to Create organization package", "may forbid new packages"),
        ("permission_denied: The token provided does not match expected scopes.", "write:packages"),
        ("Resource protected by organization SAML enforcement.", "SSO: https://github.com/settings/tokens"),
        ("User cannot be authenticated with the token provided.", "which is wrong or has expired"),
    ],
)
@pytest.mark.parametrize("operation", ["open", "send", "manifest"])
async def test_denials_are_told_apart_by_their_words(
    web: aioresponses, operation: str, message: str, remedy: str
) -> None:
    """Status and code are the same for all; each has a remedy of its own."""
    error = await _refuse(web, operation, 403, _document("DENIED", message))
    assert "asked with GITHUB_TOKEN, " in str(error)
    assert remedy in str(error)
    assert not error.is_temporary


@pytest.mark.parametrize(
    ("status", "body", "remedy"),
    [
        (405, _document("UNSUPPORTED"), "read-only mirror"),
        (404, _document("NAME_UNKNOWN"), "to be created before the first push"),
        (404, "<html>", "not how a registry answers"),
        (302, "", "302 Found, to https://login.example; "),
        (412, _document("PRECONDITION", "Quota exceeded"), "raise the quota"),
        (507, "", "no room left"),
        # Both kinds of rate limits pass, and nobody's credentials are accused.
        (
            429,
            "retry-after: 5m",
            "it asks to wait 300 s; run it again later; what was sent is not sent again",
        ),
        (
            403,
            "Secondary rate limit",
            "it asks to wait 60 s; run it again later; what was sent is not sent again",
        ),
    ],
)
@pytest.mark.parametrize("operation", ["open", "manifest"])
async def test_other_refusals_have_remedies_too(
    web: aioresponses, operation: str, status: int, body: str, remedy: str
) -> None:
    """A mirror, a registry that makes no repositories, a login page, a full disk, a limit that passes."""
    error = await _refuse(web, operation, status, body)
    assert remedy in str(error)
    assert error.is_temporary == (error.retry_after is not None)
    assert error.retry_after is None or "asked with" not in str(error)


async def test_a_full_account_is_sent_to_its_billing(ghcr: GhcrDouble) -> None:
    """A quota is no lack of permission; nothing that was refused stays behind."""
    ghcr.quota = len(_CONTENT) - 1
    error = await _refused(ghcr)
    assert (error.code, error.is_temporary) == ("DENIED", False)
    assert "https://github.com/organizations/octocat/settings/billing" in str(error)
    assert "packages: write" not in str(error)
    assert ghcr.blobs(NAME) == {}
    assert ghcr.count("upload-put") == 1


async def test_a_blob_over_the_limit_is_named_with_its_size(ghcr: GhcrDouble, sparse: Path) -> None:
    """The registry refuses while the bytes still flow; they are not sent a second time."""
    ghcr.blob_limit = 1024 * 1024
    error = await _refused(ghcr, lambda repository: repository.push_blob(_DIGEST, sparse))
    assert (error.status, error.code, error.is_temporary) == (413, "SIZE_INVALID", False)
    assert "it has 67108864 bytes, more than the registry or a server in front of it takes" in str(error)
    assert "NIXCACHE_MAX_BLOB_BYTES" in str(error)
    assert ghcr.count("upload-put") == 1


@pytest.mark.parametrize("hangs_up", [True, False])
@pytest.mark.parametrize("status", [403, 413])
async def test_a_refusal_while_the_body_comes_is_heard(sparse: Path, status: int, *, hangs_up: bool) -> None:
    """Some servers answer, and read no more: the answer counts, and nothing waits for a hang-up."""
    puts = 0
    ended = asyncio.Event()
    body = b'{"errors":[{"code":"DENIED","message":"Quota exceeded"}]}'

    async def refuse(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        nonlocal puts
        while not (await source.readuntil(b"\r\n\r\n")).startswith(b"PUT"):
            sink.write(b"HTTP/1.1 202 Accepted\r\nLocation: /session\r\nContent-Length: 0\r\n\r\n")
        puts += 1
        sink.write(b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        try:
            while not hangs_up and not sink.is_closing():
                await asyncio.sleep(0.01)
                sink.write(b"x")  # finds out whether anybody is there, without reading
                await sink.drain()
        finally:
            ended.set()

    async with talk(refuse) as url, opened(url.removeprefix("http://"), None, push=True) as registry:
        with pytest.raises(RegistryError, match=r"Quota exceeded.*no room left") as raised:
            await registry.push_blob(_DIGEST, sparse)
        async with asyncio.timeout(30):
            await ended.wait()
    assert (raised.value.status, raised.value.code, puts) == (status, "DENIED", 1)


@pytest.mark.parametrize(
    ("asker", "refusal", "remedy"),
    [
        (_ASKER, ErrorResponse(403, "DENIED", "denied"), f"which needs {_WORKFLOW} in a workflow"),
        (_ASKER, ErrorResponse(403, "DENIED", "denied"), _SETTINGS),
        (_READER, ErrorResponse(403, "DENIED"), "which needs permissions: packages: read in a workflow"),
        (_READER, ErrorResponse(403, "DENIED", "permission_denied: read_package"), "with role Read"),
        (
            _NOBODY,
            ErrorResponse(403, "DENIED"),
            "set NIXCACHE_TOKEN_FILE or GITHUB_TOKEN, or run docker login ghcr.io",
        ),
        (
            _QUAY,
            ErrorResponse(403, "DENIED"),
            "asked with config.json, which needs write access to this repository",
        ),
        (
            _QUAY,
            ErrorResponse(401, "UNAUTHORIZED", is_about_token=True),
            "config.json, which is wrong or has expired",
        ),
        (
            replace(_QUAY, source=None),
            ErrorResponse(403),
            "set NIXCACHE_TOKEN_FILE, or run docker login quay.io",
        ),
        (replace(_QUAY, push=False), ErrorResponse(404, message="no"), ""),
        (_ASKER, ErrorResponse(401, is_about_token=True), "which is wrong or has expired"),
        (_ASKER, ErrorResponse(402), "public packages need no quota"),
        (_ASKER, ErrorResponse(400, "SIZE_INVALID", size=7), "sending 7 bytes: more than it accepts"),
        (
            _ASKER,
            ErrorResponse(413, size=7),
            "set NIXCACHE_MAX_BLOB_BYTES to it (1M for nginx with its defaults)",
        ),
        (_ASKER, ErrorResponse(413, size=7, is_manifest=True), "lower NIXCACHE_MAX_LAYERS"),
        (_QUAY, ErrorResponse(409, "TAG_IMMUTABLE", is_manifest=True), "exclude it from the rule"),
        (
            _QUAY,
            ErrorResponse(400, "", "the tag is immutable", is_manifest=True),
            "cache-index has to be moved",
        ),
        (
            _QUAY,
            ErrorResponse(405, "UNSUPPORTED", "Limit on number of layers exceeded", is_manifest=True),
            "set NIXCACHE_MAX_LAYERS to what it takes (490 at Amazon's)",
        ),
        (_QUAY, ErrorResponse(405, "UNSUPPORTED", is_manifest=True), "accepts no pushes here"),
        (_QUAY, ErrorResponse(400, "NAME_INVALID"), "NIXCACHE_IMAGE (- for none) to a name that it takes"),
        (
            _QUAY,
            ErrorResponse(403, size=7),
            "repository; as it gives no reason, it may also be a quota",
        ),
        (_ASKER, ErrorResponse(403, is_elsewhere=True), ""),
        (_ASKER, ErrorResponse(502, message="bad gateway"), ""),
        (_ASKER, ErrorResponse(None), ""),
        (_ASKER, ErrorResponse(429, message="quota exceeded", is_limit=True), "run it again later"),
        (_NOBODY, ErrorResponse(429, is_limit=True), "credentials may raise the limit"),
        (_READER, ErrorResponse(429, is_limit=True), ""),
        (
            RequestContext("containers.house.ghe.com", "team/x", push=True, source="GH_TOKEN"),
            ErrorResponse(403, "DENIED", "permission_denied: write_package"),
            "https://house.ghe.com/orgs/team/packages/container/x/settings",
        ),
    ],
)
def test_remedies(asker: RequestContext, refusal: ErrorResponse, remedy: str) -> None:
    """Every rule as a row; where nothing is known to help, nothing is said."""
    found = find_hint(asker, refusal)
    assert remedy in found
    assert bool(found) == bool(remedy)


# Blobs that are gone


@pytest.mark.parametrize(
    ("status", "code", "puts"), [(400, "MANIFEST_BLOB_UNKNOWN", 1), (404, "BLOB_UNKNOWN", 5)]
)
async def test_missing_blobs_are_told_by_their_code(
    ghcr: GhcrDouble, status: int, code: str, puts: int
) -> None:
    """The publisher acts on the code, at once or after five tries: no lag after a push hides it for long."""
    async with opened(ghcr.host, owner(ghcr), push=True, patience=600) as registry:
        await _push_blob(registry)
        body = json.dumps({"errors": [{"code": code, "detail": str(_DIGEST)}]}).encode()
        ghcr.fault("manifest-put", "status", times=None, status=status, body=body)
        with pytest.raises(RegistryError) as raised:
            await _push_manifest(registry)
    assert (raised.value.status, raised.value.code) == (status, code)
    assert not isinstance(raised.value, NotFoundError)
    assert ghcr.count("manifest-put") == puts


# Many at once


@pytest.mark.parametrize("breaks", [12, None])
async def test_uploads_that_break_late(ghcr: GhcrDouble, tmp_path: Path, breaks: int | None) -> None:
    """What broke is read again from its start, five times at most, with all patience; no file stays open."""
    blobs = {}
    for number in range(8):
        content = bytes([number]) * 1_000_000
        blobs[Digest.of(content)] = tmp_path / str(number)
        (tmp_path / str(number)).write_bytes(content)
    ghcr.fault("upload-put", "cut_request", after=900_000, times=breaks)
    async with opened(ghcr.host, owner(ghcr), push=True, patience=600) as registry:
        pushes = (registry.push_blob(digest, path) for digest, path in blobs.items())
        results = await asyncio.gather(*pushes, return_exceptions=True)
        assert open_files_in(tmp_path) == []
    failed = [result for result in results if result is not None]
    assert all(isinstance(result, RegistryError) and result.is_temporary for result in failed)
    assert len(ghcr.blobs(NAME)) == len(blobs) - len(failed)
    assert ghcr.count("upload-put") == (
        5 * len(blobs) if breaks is None else breaks + len(blobs) - len(failed)
    )


@pytest.mark.parametrize("kind", ["there", "absent", "told by a range"])
async def test_looks_at_many_blobs_share_their_connections(kind: str) -> None:
    """Sixteen at once need sixteen connections, however many are looked at."""
    peers: set[object] = set()

    async def answer(request: server.Request) -> server.StreamResponse:
        peers.add(request.transport and request.transport.get_extra_info("peername"))
        if kind == "absent":
            return server.json_response({}, status=404)
        if request.method == "GET":
            headers = {"Content-Range": "bytes 0-0/7", "Content-Length": "1"}
            response = server.StreamResponse(status=206, headers=headers)
            await response.prepare(request)
            await asyncio.sleep(0.005)  # the byte comes later than the headers
            await response.write(b"c")
            return response
        if kind == "told by a range":
            headers = {"Location": "http://elsewhere.example/signed", "Content-Length": "0"}
            return server.Response(status=307, headers=headers)
        return server.Response(body=_CONTENT)

    async def look(registry: Registry, digests: Iterator[Digest]) -> None:
        for digest in digests:
            if kind == "absent":
                with pytest.raises(NotFoundError):
                    await registry.stat_blob(digest)
            else:
                assert await registry.stat_blob(digest) == len(_CONTENT)

    async with serve(answer) as url, opened(url.removeprefix("http://"), None, push=True) as registry:
        digests = (Digest.of(str(number).encode()) for number in range(200))
        await asyncio.gather(*(look(registry, digests) for _ in range(16)))
    assert len(peers) <= 16
