import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDictProxy
from yarl import URL

from nixcache_oci.oci.digest import Digest
from tests.support.ghcr import GhcrDouble
from tests.support.skopeo import IMAGE_MANIFEST, layout_blobs, manifest_of, skopeo_copy, write_layout

REPOSITORY = "octocat/hello/nix-cache"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
MIB = 1024 * 1024


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        yield double


class RawClient:
    """Speaks HTTP without any knowledge of registries, apart from getting a token."""

    def __init__(self, ghcr: GhcrDouble, http: aiohttp.ClientSession) -> None:
        self.ghcr = ghcr
        self.http = http
        self.bearer: str | None = None

    async def token(self, actions: str = "pull,push", secret: str | None = None) -> tuple[int, Any]:
        auth = {"Authorization": basic(secret)} if secret else {}
        query = {"service": "ghcr.io", "scope": f"repository:{REPOSITORY}:{actions}"}
        async with self.http.get(f"http://{self.ghcr.host}/token", params=query, headers=auth) as response:
            return response.status, await response.json()

    async def login(self, actions: str = "pull,push", secret: str | None = None) -> None:
        status, document = await self.token(actions, secret or self.ghcr.token)
        assert (status, set(document)) == (200, {"token"})
        self.bearer = document["token"]

    async def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, CIMultiDictProxy[str], bytes]:
        url = URL(path if path.startswith("http") else f"http://{self.ghcr.host}{path}", encoded=True)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.bearer and url.authority == self.ghcr.host:
            names.setdefault("Authorization", f"Bearer {self.bearer}")
        async with self.http.request(
            method, url, data=io.BytesIO(body) if body else None, headers=names, allow_redirects=False
        ) as answer:
            return answer.status, answer.headers, await answer.read()

    async def code(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
        status, _, content = await self.ask(method, path, body, **headers)
        return status, json.loads(content)["errors"][0]["code"]

    async def push_blob(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        _, headers, _ = await self.ask("POST", f"/v2/{REPOSITORY}/blobs/uploads/")
        status, _, _ = await self.ask("PUT", f"{headers['Location']}?digest={digest}", content)
        assert status == 201
        return digest

    async def signed_url(self, digest: Digest) -> str:
        status, headers, _ = await self.ask("GET", f"/v2/{REPOSITORY}/blobs/{digest}")
        assert status == 307
        return headers["Location"]


def basic(secret: str) -> str:
    return "Basic " + base64.b64encode(f"anyone:{secret}".encode()).decode()


def put_image(ghcr: GhcrDouble, tag: str, *layers: bytes) -> Digest:
    for each in (b"{}", *layers):
        ghcr.put_blob(REPOSITORY, each)
    return ghcr.put_manifest(REPOSITORY, tag, manifest_of(*layers))


@pytest.fixture
async def client(ghcr: GhcrDouble) -> AsyncIterator[RawClient]:
    async with aiohttp.ClientSession() as http:
        http._retry_connection = False  # else aiohttp silently sends idempotent requests a second time
        yield RawClient(ghcr, http)


async def test_challenge_is_a_placeholder(client: RawClient) -> None:
    """The scope of /v2/ names no repository, so a client has to build its own."""
    status, headers, _ = await client.ask("GET", "/v2/")
    assert status == 401
    expected = (
        f'Bearer realm="http://{client.ghcr.host}/token",service="ghcr.io",scope="repository:user/image:pull"'
    )
    assert headers["WWW-Authenticate"] == expected


async def test_tokens(client: RawClient) -> None:
    """Anonymous ones are for public packages only; bad ones are refused; too few rights are 403."""
    put_image(client.ghcr, "one")
    assert (await client.token())[0] == 403
    assert (await client.token(secret="expired"))[0] == 403
    client.ghcr.private = False
    assert (await client.token(secret="expired"))[0] == 403
    status, document = await client.token()
    assert status == 200
    client.bearer = document["token"]
    assert (await client.ask("GET", f"/v2/{REPOSITORY}/tags/list"))[0] == 200
    assert await client.code("POST", f"/v2/{REPOSITORY}/blobs/uploads/") == (403, "DENIED")
    client.ghcr.expire_tokens()
    assert await client.code("GET", f"/v2/{REPOSITORY}/tags/list") == (401, "UNAUTHORIZED")
    assert "expires_in" not in document
    await client.login(secret=client.ghcr.read_token)
    assert await client.code("POST", f"/v2/{REPOSITORY}/blobs/uploads/") == (403, "DENIED")
    client.ghcr.tells_token_seconds = True
    assert (await client.token())[1]["expires_in"] == client.ghcr.token_seconds


async def test_blob_comes_from_the_storage(client: RawClient) -> None:
    """A blob GET redirects to a signed URL, whose plus signs have to stay percent-encoded."""
    await client.login()
    digest = await client.push_blob(b"0123456789")
    assert (await client.ask("HEAD", f"/v2/{REPOSITORY}/blobs/{digest}"))[0] == 200
    url = await client.signed_url(digest)
    assert "%2B" in url
    status, headers, content = await client.ask("GET", url)
    assert (status, content) == (200, b"0123456789")
    assert "Accept-Ranges" not in headers
    assert (await client.ask("GET", url, Range="bytes=2-4"))[::2] == (206, b"234")
    assert (await client.ask("GET", url, Range="bytes=2-"))[::2] == (200, b"0123456789")
    assert (await client.ask("GET", url, Range="bytes=10-12"))[0] == 416
    assert (await client.ask("HEAD", url))[0] == 403
    assert (await client.ask("GET", url.replace("%2B", "+")))[0] == 403
    client.ghcr.expire_urls()
    assert (await client.ask("GET", url))[0] == 403
    client.ghcr.blob_head_status = 307
    assert (await client.ask("HEAD", f"/v2/{REPOSITORY}/blobs/{digest}"))[0] == 307


async def test_credentials_at_the_storage_are_a_violation() -> None:
    """Never switched off: who sends the token to the storage fails the test, whatever else happens."""
    with pytest.raises(AssertionError, match="sent credentials"), GhcrDouble() as ghcr:  # noqa: PT012  closing is what raises
        async with aiohttp.ClientSession() as http:
            client = RawClient(ghcr, http)
            await client.login()
            url = await client.signed_url(await client.push_blob(b"secret"))
            status, _, content = await client.ask("GET", url, Authorization=f"Bearer {client.bearer}")
            assert status == 400
            assert b"secret" not in content


async def test_sweep_takes_what_no_manifest_names(client: RawClient) -> None:
    """Never switched off: a blob is safe only inside a manifest."""
    put_image(client.ghcr, "one", b"kept")
    stray = client.ghcr.put_blob(REPOSITORY, b"stray")
    assert client.ghcr.sweep() == [stray]
    assert set(client.ghcr.blobs(REPOSITORY)) == {Digest.of(b"{}"), Digest.of(b"kept")}
    await client.login()
    assert (await client.ask("HEAD", f"/v2/{REPOSITORY}/blobs/{stray}"))[0] == 404
    assert await client.code("GET", f"/v2/{REPOSITORY}/blobs/{stray}") == (404, "BLOB_UNKNOWN")


async def test_uploads(client: RawClient) -> None:
    """One PUT, or one streamed PATCH and a PUT; a wrong digest is 400."""
    await client.login()
    uploads = f"/v2/{REPOSITORY}/blobs/uploads/"
    status, headers, _ = await client.ask("POST", uploads)
    location = headers["Location"]
    assert status == 202
    assert re.fullmatch(re.escape(uploads) + "[0-9a-f]+", location)
    big = bytes(5 * MIB)
    digest = Digest.of(big)
    assert (await client.ask("PATCH", location, big))[0] == 202
    status, headers, _ = await client.ask("PUT", f"{location}?digest={digest}")
    assert (status, headers["Docker-Content-Digest"]) == (201, str(digest))
    assert client.ghcr.blobs(REPOSITORY) == {digest: len(big)}
    assert await client.code("PUT", f"{location}?digest={digest}", b"x") == (404, "BLOB_UPLOAD_UNKNOWN")
    _, headers, _ = await client.ask("POST", uploads)
    refused = await client.code("PUT", f"{headers['Location']}?digest={digest}", b"other")
    assert refused == (400, "DIGEST_INVALID")


async def test_manifests(client: RawClient) -> None:
    """Reading needs the manifest's type in Accept; pushing needs every blob and child to exist."""
    await client.login()
    path = f"/v2/{REPOSITORY}/manifests"
    assert await client.code("GET", f"{path}/one", Accept=IMAGE_MANIFEST) == (404, "NAME_UNKNOWN")
    content = manifest_of(b"layer")
    digest = Digest.of(content)
    missing = await client.code("PUT", f"{path}/one", content, Content_Type=IMAGE_MANIFEST)
    assert missing == (400, "MANIFEST_BLOB_UNKNOWN")
    await client.push_blob(b"{}")
    await client.push_blob(b"layer")
    assert (await client.ask("PUT", f"{path}/one", content, Content_Type=IMAGE_MANIFEST))[0] == 201
    status, headers, body = await client.ask(
        "GET", f"{path}/{digest}", Accept=f"{IMAGE_INDEX}, {IMAGE_MANIFEST}"
    )
    assert (status, body, headers["Docker-Content-Digest"]) == (200, content, str(digest))
    assert (await client.ask("HEAD", f"{path}/one", Accept=IMAGE_MANIFEST))[0] == 200
    assert await client.code("GET", f"{path}/one", Accept=IMAGE_INDEX) == (404, "MANIFEST_UNKNOWN")
    assert await client.code("GET", f"{path}/two", Accept=IMAGE_MANIFEST) == (404, "MANIFEST_UNKNOWN")
    wrong = await client.code("PUT", f"{path}/{digest}", manifest_of(), Content_Type=IMAGE_MANIFEST)
    assert wrong == (400, "DIGEST_INVALID")
    child = {"mediaType": IMAGE_MANIFEST, "digest": str(Digest.of(b"?")), "size": 1}
    index = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [child]}).encode()
    assert await client.code("PUT", f"{path}/i", index, Content_Type=IMAGE_INDEX) == (400, "MANIFEST_UNKNOWN")
    huge = manifest_of(annotation="x" * (4 * MIB))
    assert (await client.ask("PUT", f"{path}/huge", huge, Content_Type=IMAGE_MANIFEST))[0] == 500
    assert await client.code("DELETE", f"{path}/{digest}") == (405, "UNSUPPORTED")
    upper = await client.code("GET", "/v2/Octocat/x/manifests/one", Accept=IMAGE_MANIFEST)
    assert upper == (400, "NAME_INVALID")


async def test_packages_api(client: RawClient) -> None:
    """Versions are listed newest first with their tags, and deleted; the slash is %2F."""
    first = put_image(client.ghcr, "index", b"1")
    second = put_image(client.ghcr, "index", b"2")
    token = f"Bearer {client.ghcr.token}"
    base = f"{client.ghcr.api_url}/users/octocat/packages/container/hello%2Fnix-cache"
    assert (await client.ask("GET", f"{base}/versions"))[0] == 401
    assert (await client.ask("GET", base.replace("users", "orgs"), Authorization=token))[0] == 404
    assert (await client.ask("GET", base.replace("%2F", "/"), Authorization=token))[0] == 404
    _, headers, body = await client.ask("GET", f"{base}/versions?per_page=1", Authorization=token)
    assert 'rel="next"' in headers["Link"]
    assert [version["name"] for version in json.loads(body)] == [str(second)]
    _, _, body = await client.ask("GET", f"{base}/versions?per_page=1&page=2", Authorization=token)
    (old,) = json.loads(body)
    assert (old["name"], old["metadata"]["container"]["tags"]) == (str(first), [])
    read_only = f"Bearer {client.ghcr.read_token}"
    assert (await client.ask("DELETE", f"{base}/versions/{old['id']}", Authorization=read_only))[0] == 403
    assert (await client.ask("DELETE", f"{base}/versions/{old['id']}", Authorization=token))[0] == 204
    assert set(client.ghcr.manifests(REPOSITORY)) == {second}


async def test_outage_cuts_what_is_under_way(client: RawClient) -> None:
    """An outage ends answers, also those that wait or stall; the same ports hold the same things after it."""
    digest = client.ghcr.put_blob(REPOSITORY, bytes(32 * MIB))
    await client.login()
    url = URL(await client.signed_url(digest), encoded=True)
    async with client.http.get(url) as unread:
        client.ghcr.fault("storage-get", "stall", after=10)
        async with client.http.get(url) as stalled:
            host = client.ghcr.host
            await asyncio.to_thread(client.ghcr.stop)
            for response in (unread, stalled):
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
    with pytest.raises(aiohttp.ClientConnectorError):
        await client.ask("GET", "/v2/")
    client.ghcr.start()
    assert client.ghcr.host == host
    assert client.ghcr.blobs(REPOSITORY) == {digest: 32 * MIB}


@pytest.mark.needs("skopeo")
def test_skopeo_copies_in_and_out(ghcr: GhcrDouble, tmp_path: Path) -> None:
    """An independent client is content with the double, in both directions."""
    layout = tmp_path / "layout"
    write_layout(layout, b"a layer " * 100_000)
    skopeo_copy(f"oci:{layout}:one", f"docker://{ghcr.host}/{REPOSITORY}:one", f"--dest-creds=u:{ghcr.token}")
    assert list(ghcr.tags(REPOSITORY)) == ["one"]
    back = tmp_path / "back"
    skopeo_copy(f"docker://{ghcr.host}/{REPOSITORY}:one", f"oci:{back}:one", f"--src-creds=u:{ghcr.token}")
    assert layout_blobs(back) == layout_blobs(layout)
