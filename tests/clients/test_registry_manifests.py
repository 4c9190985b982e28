"""Manifests and tags, against the double of GHCR."""

import json
from collections.abc import Iterator

import pytest

from nixcache_oci.errors import DigestError, NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST
from tests.clients.registry_helper import MANIFEST, NAME, opened, owner
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_faults import FaultKind

_PORTAL = b"<html>Please log in to the network</html>"


@pytest.fixture
def ghcr() -> Iterator[GhcrDouble]:
    with GhcrDouble() as double:
        yield double


@pytest.mark.parametrize("media_type", [IMAGE_MANIFEST, IMAGE_INDEX, DOCKER_MANIFEST_LIST])
async def test_a_manifest_comes_back_as_it_was_pushed(ghcr: GhcrDouble, media_type: str) -> None:
    """Bytes, type and digest survive; Accept has to list each type, or GHCR answers 404."""
    content = json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "layers": [], "manifests": []}
    ).encode()
    async with opened(ghcr.host, owner(ghcr), push=True) as registry:
        digest = await registry.push_manifest("cache-index", content, media_type)
        assert digest == Digest.of(content)
        for reference in ("cache-index", str(digest)):
            manifest = await registry.get_manifest(reference)
            assert (manifest.content, manifest.media_type, manifest.digest) == (content, media_type, digest)
            assert await registry.resolve(reference) == digest
    assert ghcr.count("manifest-head") == 2


async def test_resolving_is_one_head(ghcr: GhcrDouble) -> None:
    """A reader polls by HEAD: the answer's header is enough."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert await registry.resolve("cache-index") == digest
        ghcr.reset_requests()
        assert await registry.resolve("cache-index") == digest
    assert [record.operation for record in ghcr.requests] == ["manifest-head"]


async def test_resolving_without_the_header_reads_the_manifest(ghcr: GhcrDouble) -> None:
    """Docker-Content-Digest is optional."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    ghcr.fault("manifest-head", "status", status=200)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert await registry.resolve("cache-index") == digest


async def test_absence_is_what_the_registry_says_itself(ghcr: GhcrDouble) -> None:
    """An unknown tag, an unknown digest, and a repository that nobody pushed to yet are all plain absence."""
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(NotFoundError, match=r"list tags: .*NAME_UNKNOWN"):
            await registry.list_tags()
        ghcr.put_manifest(NAME, "other", MANIFEST)
        for reference in ("cache-index", str(Digest.of(b"absent"))):
            with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN") as raised:
                await registry.get_manifest(reference)
            assert (raised.value.status, raised.value.is_temporary) == (404, False)
            with pytest.raises(NotFoundError, match="MANIFEST_UNKNOWN"):
                await registry.resolve(reference)


@pytest.mark.parametrize(
    "body", [_PORTAL, b"", b"{}", b'{"errors":[{"code":"DENIED"}]}', b'{"errors":[]}', b"[]"]
)
async def test_a_404_of_something_else_is_not_absence(ghcr: GhcrDouble, body: bytes) -> None:
    """Taking a captive portal's page for an empty cache would overwrite the cache."""
    ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    ghcr.fault("manifest-|tags", "status", times=None, status=404, body=body)
    ghcr.fault("/manifests/|/tags/", "status", times=None, status=404, body=body)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        for call in (
            registry.resolve("cache-index"),
            registry.get_manifest("cache-index"),
            registry.list_tags(),
        ):
            with pytest.raises(RegistryError, match="not how a registry says") as raised:
                await call
            assert not isinstance(raised.value, NotFoundError)


@pytest.mark.parametrize("kind", ["garbage", "wrong_byte", "truncated"])
@pytest.mark.parametrize("by_digest", [True, False])
async def test_bytes_that_the_digest_does_not_name_are_refused(
    ghcr: GhcrDouble, kind: FaultKind, *, by_digest: bool
) -> None:
    """By digest and by tag alike, since the registry tells a tag's digest beside the bytes."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        await registry.resolve("cache-index")
        ghcr.fault("manifest-get", kind, after=3, times=None)
        with pytest.raises(RegistryError, match="have digest") as raised:
            await registry.get_manifest(str(digest) if by_digest else "cache-index")
    assert not isinstance(raised.value, NotFoundError)
    assert ghcr.count("manifest-get") == 5


@pytest.mark.parametrize("kind", ["garbage", "wrong_byte", "truncated"])
@pytest.mark.parametrize("operation", ["manifest-get", "tags"])
async def test_bytes_that_were_spoilt_on_the_way_are_asked_for_again(
    ghcr: GhcrDouble, kind: FaultKind, operation: str
) -> None:
    """One bad answer that says success must not end a publish."""
    ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        await registry.resolve("cache-index")
        ghcr.fault(operation, kind, after=0)
        if operation == "tags":
            assert await registry.list_tags() == ["cache-index"]
        else:
            assert (await registry.get_manifest("cache-index")).content == MANIFEST
    assert ghcr.count(operation) == 2


async def test_junk_under_a_tag_is_refused(ghcr: GhcrDouble) -> None:
    """Without a digest to check against, at least the type has to be one that was asked for."""
    ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    headers = {"Content-Type": "text/html; charset=utf-8"}
    ghcr.fault("/manifests/", "status", times=None, status=200, body=_PORTAL, headers=headers)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        for call in (registry.resolve("cache-index"), registry.get_manifest("cache-index")):
            with pytest.raises(RegistryError, match="'text/html'"):
                await call


async def test_a_huge_manifest_is_refused(ghcr: GhcrDouble) -> None:
    """Nobody can make the client hold more than 4 MiB."""
    digest = ghcr.put_manifest(NAME, "cache-index", b" " * (4 * 1024 * 1024 + 1))
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(RegistryError, match="larger than 4194304 bytes"):
            await registry.get_manifest(str(digest))


@pytest.mark.parametrize("kind", ["cut", "refuse", "reset", "lost"])
async def test_broken_connections_are_tried_again(ghcr: GhcrDouble, kind: FaultKind) -> None:
    """A manifest is read whole in one try or asked for again."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        await registry.resolve("cache-index")
        ghcr.fault("manifest-get", kind, after=10, times=2)
        assert (await registry.get_manifest("cache-index")).digest == digest


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_temporary_statuses_are_tried_again(ghcr: GhcrDouble, status: int) -> None:
    """One registry answers 500 while a tag is rewritten."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    ghcr.fault("manifest-head", "status", status=status, times=3)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert await registry.resolve("cache-index") == digest
    assert ghcr.count("manifest-head") == 5  # the first try has no token yet


async def test_tries_end(ghcr: GhcrDouble) -> None:
    """After five tries the caller learns what happened, and that it may pass."""
    ghcr.fault("tags", "status", times=None, status=502)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(
            RegistryError, match=rf"^list tags: {ghcr.host}/{NAME}: 502 Bad Gateway$"
        ) as raised:
            await registry.list_tags()
    assert (raised.value.status, raised.value.is_temporary) == (502, True)
    assert ghcr.count("tags") == 5


async def test_patience_ends(ghcr: GhcrDouble) -> None:
    """A registry that answers slowly gets fewer tries: the time they take counts."""
    ghcr.latency = 0.1
    ghcr.fault("tags", "status", times=None, status=502)
    async with opened(ghcr.host, owner(ghcr), patience=0.15) as registry:
        with pytest.raises(RegistryError, match="502") as raised:
            await registry.list_tags()
    assert raised.value.is_temporary
    assert ghcr.count("tags") < 5


async def test_an_outage_is_temporary(ghcr: GhcrDouble) -> None:
    """A refused connection has no status, and says where it was refused."""
    ghcr.stop()
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(RegistryError, match=f"no connection to {ghcr.host}: ") as raised:
            await registry.resolve("cache-index")
    assert (raised.value.status, raised.value.is_temporary) == (None, True)


async def test_a_stall_ends(ghcr: GhcrDouble) -> None:
    """A registry that stands still costs the stall's limit, not for ever."""
    ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    ghcr.fault("manifest-get", "stall", after=10, times=None)
    async with opened(ghcr.host, owner(ghcr), patience=0.2, stall=0.3) as registry:
        with pytest.raises(RegistryError, match="stalled") as raised:
            await registry.get_manifest("cache-index")
        assert raised.value.is_temporary


async def test_a_wait_in_the_body_is_obeyed(ghcr: GhcrDouble) -> None:
    """GHCR names the wait as a Go duration; it is taken for at least a second."""
    digest = ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    ghcr.rate_limit("manifest-get")
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert (await registry.get_manifest("cache-index")).digest == digest
        ghcr.rate_limit("manifest-get", wait="25m")
        with pytest.raises(RegistryError, match=r"429 TOOMANYREQUESTS .*asks to wait 1500 s") as raised:
            await registry.get_manifest("cache-index")
    assert (raised.value.is_temporary, raised.value.retry_after) == (True, 1500)


@pytest.mark.parametrize("operation", ["manifest-get", "manifest-head", "token"])
async def test_a_secondary_rate_limit_is_not_a_denial(ghcr: GhcrDouble, operation: str) -> None:
    """GitHub's 403 under load must not be told as a lack of permission, nor lead to anonymous reading."""
    ghcr.put_manifest(NAME, "cache-index", MANIFEST)
    ghcr.private = False
    ghcr.secondary_limit(operation)
    if operation == "manifest-head":
        ghcr.secondary_limit("manifest-get")  # the reason is asked for there
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(RegistryError, match=r"secondary rate limit|asks to wait 60 s") as raised:
            await registry.resolve("cache-index") if operation == "manifest-head" else (
                await registry.get_manifest("cache-index")
            )
    assert (raised.value.is_temporary, raised.value.retry_after) == (True, 60)
    assert "permission" not in str(raised.value)


async def test_what_was_pushed_a_moment_ago_is_waited_for(ghcr: GhcrDouble) -> None:
    """Just after a push GHCR may say "manifest unknown": this client knows better."""
    ghcr.lag_answers = 2
    async with opened(ghcr.host, owner(ghcr), push=True) as registry:
        digest = await registry.push_manifest("cache-index", MANIFEST, IMAGE_MANIFEST)
        assert await registry.resolve("cache-index") == digest
        assert (await registry.get_manifest(str(digest))).digest == digest
        with pytest.raises(NotFoundError):
            await registry.get_manifest("other")


async def test_a_push_goes_on_after_trouble(ghcr: GhcrDouble) -> None:
    """Pushing a manifest twice is the same as once, so it may be tried again."""
    ghcr.fault("manifest-put", "lost")
    ghcr.fault("manifest-put", "status", status=502)
    async with opened(ghcr.host, owner(ghcr), push=True) as registry:
        digest = await registry.push_manifest("cache-index", MANIFEST, IMAGE_MANIFEST)
    assert ghcr.tags(NAME) == {"cache-index": digest}


async def test_a_manifest_whose_blobs_are_missing_is_told_by_its_code(ghcr: GhcrDouble) -> None:
    """The publisher asks for each layer then; it is no NotFoundError, for nothing was looked up."""
    blob = Digest.of(b"gone")
    content = json.dumps(
        {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "layers": [{"digest": str(blob), "size": 4}]}
    ).encode()
    async with opened(ghcr.host, owner(ghcr), push=True) as registry:
        with pytest.raises(RegistryError, match=r"push manifest segment: .*MANIFEST_BLOB_UNKNOWN") as raised:
            await registry.push_manifest("segment", content, IMAGE_MANIFEST)
    assert raised.value.code == "MANIFEST_BLOB_UNKNOWN"
    assert not isinstance(raised.value, NotFoundError)


async def test_blobs_pushed_a_moment_ago_are_waited_for(ghcr: GhcrDouble) -> None:
    """GHCR may not know them yet when their manifest comes; without a push before, 404 is final."""
    unknown = b'{"errors":[{"code":"BLOB_UNKNOWN"}]}'
    async with opened(ghcr.host, owner(ghcr), push=True) as registry:
        ghcr.fault("manifest-put", "status", skip=1, status=404, body=unknown)
        with pytest.raises(RegistryError, match="404 BLOB_UNKNOWN"):
            await registry.push_manifest("segment", MANIFEST, IMAGE_MANIFEST)
        await registry.push_blob(Digest.of(b"x"), b"x")
        ghcr.fault("manifest-put", "status", times=2, status=404, body=unknown)
        await registry.push_manifest("segment", MANIFEST, IMAGE_MANIFEST)


async def test_a_digest_must_name_what_is_pushed(ghcr: GhcrDouble) -> None:
    """The mistake is found before anything is sent."""
    async with opened(ghcr.host, owner(ghcr), push=True) as registry:
        with pytest.raises(DigestError):
            await registry.push_manifest(str(Digest.of(b"x")), MANIFEST, IMAGE_MANIFEST)
    assert not ghcr.requests


async def test_every_page_of_tags_is_read(ghcr: GhcrDouble) -> None:
    """A list that ends at the first page would make segments disappear."""
    tags = [f"segment-{number}" for number in range(250)]
    for tag in tags:
        ghcr.put_manifest(NAME, tag, MANIFEST)
    ghcr.tags_page_max = 100
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert sorted(await registry.list_tags()) == sorted(tags)
        assert ghcr.count("tags") == 4  # the first try has no token yet
        ghcr.fault("tags", "status", skip=2, times=None, status=500)
        with pytest.raises(RegistryError, match="list tags"):
            await registry.list_tags()


@pytest.mark.parametrize("body", [b"{}", b'{"tags":[1]}', b'{"tags":"a"}', b"[]", _PORTAL, b'{"tags":["a"'])
async def test_a_broken_list_of_tags_is_an_error(ghcr: GhcrDouble, body: bytes) -> None:
    """Junk is not an empty list."""
    ghcr.put_manifest(NAME, "a", MANIFEST)
    ghcr.fault("tags", "status", skip=1, times=None, status=200, body=body)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(RegistryError, match="the list of tags"):
            await registry.list_tags()


@pytest.mark.parametrize(
    ("link", "reason"),
    [
        ('<http://127.0.0.1:1/v2/x/tags/list>; rel="next"', "another server"),
        ("</v2/octocat/hello/nix-cache/tags/list?n=10000>; rel=next", "does not end"),
        ("</v2/x; rel=next", "cannot be read"),
        ("<ftp://x/>; rel=next", "not a plain http"),
    ],
)
async def test_a_list_of_tags_that_leads_astray_is_an_error(ghcr: GhcrDouble, link: str, reason: str) -> None:
    """The token stays at the registry, a circle ends, and nothing is left out in silence."""
    ghcr.put_manifest(NAME, "a", MANIFEST)
    ghcr.fault(
        "tags", "status", times=None, skip=1, status=200, body=b'{"tags":["a"]}', headers={"Link": link}
    )
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(RegistryError, match=reason):
            await registry.list_tags()


async def test_an_empty_list_may_be_null(ghcr: GhcrDouble) -> None:
    """Go writes an empty list so; it is complete."""
    ghcr.put_manifest(NAME, "a", MANIFEST)
    ghcr.fault("tags", "status", skip=1, status=200, body=b'{"name":"x","tags":null}')
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert await registry.list_tags() == []
