"""Manifests and tags, against the double of GHCR."""

import json
import re

import pytest
from aioresponses import aioresponses

from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import DigestError, NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST
from tests.clients.registry_helper import MANIFEST, NAME, opened, owner
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_faults import FaultKind

_PORTAL = "<html>Please log in to the network</html>"
_ANY = re.compile("")


@pytest.mark.parametrize("media_type", [IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST_LIST])
async def test_a_manifest_comes_back_as_it_was_pushed(
    ghcr: GhcrDouble, pusher: Registry, media_type: str
) -> None:
    """Bytes, type and digest survive; Accept has to list each type, or GHCR answers 404."""
    content = json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "layers": [], "manifests": []}
    ).encode()
    digest = await pusher.push_manifest("cache-index", content, media_type)
    assert digest == Digest.of(content)
    for reference in ("cache-index", str(digest)):
        manifest = await pusher.get_manifest(reference)
        assert (manifest.content, manifest.media_type, manifest.digest) == (content, media_type, digest)
        assert await pusher.resolve(reference) == digest
    assert ghcr.count("manifest-head") == 2


async def test_resolving_is_one_head(ghcr: GhcrDouble, registry: Registry) -> None:
    """A reader polls by HEAD; without the optional Docker-Content-Digest the manifest is read."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    assert await registry.resolve("cache-index") == digest
    for operations in (["manifest-head"], ["manifest-head", "manifest-get"]):
        ghcr.reset_requests()
        assert await registry.resolve("cache-index") == digest
        assert [record.operation for record in ghcr.requests] == operations
        ghcr.fault("manifest-head", "status", status=200)


async def test_absence_is_what_the_registry_says_itself(ghcr: GhcrDouble, registry: Registry) -> None:
    """An unknown tag, an unknown digest, and a repository that nobody pushed to yet are all plain absence."""
    with pytest.raises(NotFoundError, match=r"list tags: .*NAME_UNKNOWN"):
        await registry.list_tags()
    ghcr.put_manifest(NAME, "other", MANIFEST)
    for reference in ("cache-index", str(Digest.of(b"absent"))):
        with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN") as raised:
            await registry.get_manifest(reference)
        assert (raised.value.status, raised.value.is_temporary) == (404, False)
        with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
            await registry.resolve(reference)


@pytest.mark.parametrize("body", [_PORTAL, "", "{}", '{"errors":[{"code":"DENIED"}]}', '{"errors":[]}', "[]"])
async def test_a_404_of_something_else_is_not_absence(
    web: aioresponses, stranger: Registry, body: str
) -> None:
    """Taking a captive portal's page for an empty cache would overwrite the cache."""
    web.head(_ANY, status=404, body=body)
    web.get(_ANY, status=404, body=body, repeat=True)
    for call in (stranger.resolve("a"), stranger.get_manifest("a"), stranger.list_tags()):
        with pytest.raises(RegistryError, match="not how a registry says") as raised:
            await call
        assert not isinstance(raised.value, NotFoundError)


@pytest.mark.parametrize("kind", ["garbage", "wrong_byte", "truncated"])
@pytest.mark.parametrize("by_digest", [True, False])
async def test_bytes_that_the_digest_does_not_name_are_refused(
    ghcr: GhcrDouble, registry: Registry, kind: FaultKind, *, by_digest: bool
) -> None:
    """By digest and by tag alike, since the registry tells a tag's digest beside the bytes."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    await registry.resolve("cache-index")
    ghcr.fault("manifest-get", kind, after=3, times=None)
    with pytest.raises(RegistryError, match="have digest") as raised:
        await registry.get_manifest(str(digest) if by_digest else "cache-index")
    assert not isinstance(raised.value, NotFoundError)
    assert ghcr.count("manifest-get") == 5


@pytest.mark.parametrize("kind", ["garbage", "wrong_byte", "truncated"])
@pytest.mark.parametrize("operation", ["manifest-get", "tags"])
async def test_bytes_that_were_spoilt_on_the_way_are_asked_for_again(
    ghcr: GhcrDouble, registry: Registry, kind: FaultKind, operation: str
) -> None:
    """One bad answer that says success must not end a publish."""
    ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    await registry.resolve("cache-index")
    ghcr.fault(operation, kind, after=0)
    if operation == "tags":
        assert await registry.list_tags() == ["cache-index"]
    else:
        assert (await registry.get_manifest("cache-index")).content == MANIFEST
    assert ghcr.count(operation) == 2


async def test_junk_under_a_tag_is_refused(web: aioresponses, stranger: Registry) -> None:
    """Without a digest to check against, at least the type has to be one that was asked for."""
    web.head(_ANY)
    web.get(_ANY, body=_PORTAL, content_type="text/html; charset=utf-8", repeat=True)
    for call in (stranger.resolve("a"), stranger.get_manifest("a")):
        with pytest.raises(RegistryError, match="'text/html'"):
            await call


async def test_a_huge_manifest_is_refused(ghcr: GhcrDouble, registry: Registry) -> None:
    """Nobody can make the client hold more than 4 MiB."""
    digest = ghcr.put_manifest(NAME, "cache-index", b" " * (4 * 1024 * 1024 + 1))
    with pytest.raises(RegistryError, match="larger than 4194304 bytes"):
        await registry.get_manifest(str(digest))


@pytest.mark.parametrize("kind", ["cut", "refuse", "reset", "lost"])
async def test_broken_connections_are_tried_again(
    ghcr: GhcrDouble, registry: Registry, kind: FaultKind
) -> None:
    """A manifest is read whole in one try or asked for again."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    await registry.resolve("cache-index")
    ghcr.fault("manifest-get", kind, after=10, times=2)
    assert (await registry.get_manifest("cache-index")).digest == digest


async def test_patience_ends(ghcr: GhcrDouble) -> None:
    """A registry that answers slowly gets fewer tries: the time they take counts."""
    ghcr.latency = 0.1
    ghcr.fault("tags", "status", times=None, status=502)
    async with opened(ghcr.host, owner(ghcr), patience=0.15) as registry:
        with pytest.raises(RegistryError, match="502") as raised:
            await registry.list_tags()
    assert raised.value.is_temporary
    assert ghcr.count("tags") < 5


async def test_an_outage_is_temporary(ghcr: GhcrDouble, registry: Registry) -> None:
    """A refused connection has no status, and says where it was refused."""
    ghcr.stop()
    with pytest.raises(RegistryError, match=f"no connection to {ghcr.host}: ") as raised:
        await registry.resolve("cache-index")
    assert (raised.value.status, raised.value.is_temporary) == (None, True)


async def test_a_secondary_rate_limit_is_not_a_denial(web: aioresponses, stranger: Registry) -> None:
    """GitHub's 403 under load must not be told as a lack of permission; a HEAD's reason is asked for."""
    web.head(_ANY, status=403)
    web.get(_ANY, status=403, payload={"message": "You have exceeded a secondary rate limit"})
    with pytest.raises(RegistryError, match=r"secondary rate limit.*asks to wait 60 s") as raised:
        await stranger.resolve("a")
    assert (raised.value.is_temporary, raised.value.retry_after) == (True, 60)
    assert "permission" not in str(raised.value)


async def test_what_was_pushed_a_moment_ago_is_waited_for(ghcr: GhcrDouble, pusher: Registry) -> None:
    """Just after a push GHCR may say "manifest unknown": this client knows better."""
    ghcr.lag_answers = 2
    digest = await pusher.push_manifest("cache-index", MANIFEST, IMAGE_MANIFEST)
    assert await pusher.resolve("cache-index") == digest
    assert (await pusher.get_manifest(str(digest))).digest == digest
    with pytest.raises(NotFoundError):
        await pusher.get_manifest("other")


async def test_a_push_goes_on_after_trouble(ghcr: GhcrDouble, pusher: Registry) -> None:
    """Pushing a manifest twice is the same as once, so it may be tried again."""
    ghcr.fault("manifest-put", "lost")
    ghcr.fault("manifest-put", "status", status=502)
    digest = await pusher.push_manifest("cache-index", MANIFEST, IMAGE_MANIFEST)
    assert ghcr.tags(NAME) == {"cache-index": digest}


async def test_a_manifest_whose_blobs_are_missing_is_told_by_its_code(pusher: Registry) -> None:
    """The publisher asks for each layer then; it is no NotFoundError, for nothing was looked up."""
    blob = Digest.of(b"gone")
    content = json.dumps(
        {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "layers": [{"digest": str(blob), "size": 4}]}
    ).encode()
    with pytest.raises(RegistryError, match=r"push manifest segment: .*MANIFEST_BLOB_UNKNOWN") as raised:
        await pusher.push_manifest("segment", content, IMAGE_MANIFEST)
    assert raised.value.code == "MANIFEST_BLOB_UNKNOWN"
    assert not isinstance(raised.value, NotFoundError)


async def test_blobs_pushed_a_moment_ago_are_waited_for(ghcr: GhcrDouble, pusher: Registry) -> None:
    """GHCR may not know them yet when their manifest comes; without a push before, 404 is final."""
    unknown = b'{"errors":[{"code":"BLOB_UNKNOWN"}]}'
    ghcr.fault("manifest-put", "status", skip=1, status=404, body=unknown)
    with pytest.raises(RegistryError, match="404 BLOB_UNKNOWN"):
        await pusher.push_manifest("segment", MANIFEST, IMAGE_MANIFEST)
    await pusher.push_blob(Digest.of(b"x"), b"x")
    ghcr.fault("manifest-put", "status", times=2, status=404, body=unknown)
    await pusher.push_manifest("segment", MANIFEST, IMAGE_MANIFEST)


async def test_a_digest_must_name_what_is_pushed(ghcr: GhcrDouble, pusher: Registry) -> None:
    """The mistake is found before anything is sent."""
    with pytest.raises(DigestError):
        await pusher.push_manifest(str(Digest.of(b"x")), MANIFEST, IMAGE_MANIFEST)
    assert not ghcr.requests


async def test_every_page_of_tags_is_read(ghcr: GhcrDouble, registry: Registry) -> None:
    """A list that ends at the first page would make segments disappear."""
    tags = [f"segment-{number}" for number in range(250)]
    for tag in tags:
        ghcr.put_manifest(NAME, tag, MANIFEST)
    ghcr.tags_page_max = 100
    assert sorted(await registry.list_tags()) == sorted(tags)
    assert ghcr.count("tags") == 4  # the first try has no token yet
    ghcr.fault("tags", "status", skip=2, times=None, status=500)
    with pytest.raises(RegistryError, match="list tags"):
        await registry.list_tags()


@pytest.mark.parametrize("body", ["{}", '{"tags":[1]}', '{"tags":"a"}', "[]", _PORTAL, '{"tags":["a"'])
async def test_a_broken_list_of_tags_is_an_error(web: aioresponses, stranger: Registry, body: str) -> None:
    """Junk is not an empty list; null is: Go writes an empty list so."""
    web.get(_ANY, payload={"name": "x", "tags": None})
    assert await stranger.list_tags() == []
    web.get(_ANY, body=body, repeat=True)
    with pytest.raises(RegistryError, match="the list of tags"):
        await stranger.list_tags()


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ('<http://127.0.0.1:1/v2/x/tags/list>; rel="next"', "without a query"),
        (f"</v2/{NAME}/tags/list?n=1000>; rel=next", "does not end"),
        *(("</v2/x; rel=next", "cannot be read"), ("<http://[::1?n=2>; rel=next", "without a query")),
    ],
)
async def test_a_list_of_tags_that_leads_astray_is_an_error(
    web: aioresponses, stranger: Registry, link: str, reason: str
) -> None:
    """The token stays at the registry, a circle ends, and nothing is left out in silence."""
    web.get(_ANY, payload={"tags": ["a"]}, headers={"Link": link}, repeat=True)
    with pytest.raises(RegistryError, match=reason):
        await stranger.list_tags()
