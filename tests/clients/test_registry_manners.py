"""What other registries do otherwise than GHCR, each against its double."""

from datetime import timedelta
from typing import Literal

import pytest

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import NotFoundError, RegistryError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import MANIFEST, NAME, opened, owner
from tests.support.ghcr import GhcrDouble
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish

DAY = timedelta(days=1)

_TAGS = [f"tag-{number}" for number in range(5)]


@pytest.fixture
def tagged(ghcr: GhcrDouble) -> GhcrDouble:
    for tag in _TAGS:
        ghcr.put_manifest(NAME, tag, MANIFEST)
    ghcr.tags_page_max = 2
    return ghcr


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "PAGINATION_NUMBER_INVALID"),
        (405, "UNSUPPORTED"),
        (413, "TOO_MANY_TAGS_REQUESTED"),
        (500, "INTERNAL_ERROR"),
    ],
)
async def test_a_page_size_that_is_refused_is_left_out(
    tagged: GhcrDouble, registry: Registry, status: int, code: str
) -> None:
    """ECR, R2 and older Quays refuse a size over their own, each in its way; once is enough to learn it."""
    tagged.tags_n_limit = (100, (status, code))
    assert sorted(await registry.list_tags()) == _TAGS
    tagged.reset_requests()
    assert sorted(await registry.list_tags()) == _TAGS
    assert [record.status for record in tagged.requests] == [200] * 3


async def test_no_registry_is_asked_for_pages_of_over_a_thousand_tags(
    tagged: GhcrDouble, registry: Registry
) -> None:
    """ECR, ACR and R2 take no more; so at none of them does the first page need a second request."""
    tagged.tags_n_limit = (1000, (405, "UNSUPPORTED"))
    await registry.list_tags()
    assert [record.status for record in tagged.requests if record.operation == "tags"] == [401, *[200] * 3]


async def test_a_refusal_without_a_page_size_is_an_error(tagged: GhcrDouble, registry: Registry) -> None:
    """It was about something else then, and no part of a list is taken for the whole."""
    tagged.fault("tags", "status", times=None, status=405)
    with pytest.raises(RegistryError, match=r"list tags: .*405"):
        await registry.list_tags()


@pytest.mark.parametrize("link", ["bare", "elsewhere", "always"])
async def test_any_link_leads_to_the_next_page(tagged: GhcrDouble, registry: Registry, link: str) -> None:
    """Without brackets (R2), with another path and origin (Artifactory), or on the last page too (Forgejo).

    The origin that it names gets no request: what counts is its query.
    """
    tagged.link = link  # type: ignore[assignment]  # of its literals
    assert sorted(await registry.list_tags()) == _TAGS


async def test_null_is_no_tag(tagged: GhcrDouble, registry: Registry) -> None:
    """Nexus lists it among the tags."""
    tagged.has_null_tag = True
    assert sorted(await registry.list_tags()) == _TAGS


async def test_a_segment_goes_without_its_type_where_that_is_refused(
    ghcr: GhcrDouble, pusher: Registry
) -> None:
    """GitLab takes no artifactType that it does not know; the table, which is its first layer, tells, too."""
    ghcr.refuses_artifact_type = True
    listed = await publish(pusher, [store_object("listed")])
    tagged = await publish(pusher, [store_object("tagged")], created=CREATED + DAY, is_listed=False)
    assert {one.manifest for one in (await read_listing(pusher)).segments} == {
        listed.manifest,
        tagged.manifest,
    }
    assert all(b"artifactType" not in content for content in ghcr.manifests(NAME).values())
    assert list(ghcr.tags(NAME)) == [str(listed.tag), "cache-index", str(tagged.tag)]


async def test_a_type_is_kept_where_something_else_is_refused(ghcr: GhcrDouble, pusher: Registry) -> None:
    """Older programs know a segment by it alone."""
    refusal = b'{"errors":[{"code":"MANIFEST_INVALID","message":"manifest invalid"}]}'
    ghcr.fault("manifest-put", "status", status=400, body=refusal)
    with pytest.raises(RegistryError, match="MANIFEST_INVALID"):
        await publish(pusher, [store_object("one")])
    assert ghcr.count("manifest-put") == 1


async def test_a_limit_on_layers_names_the_setting(ghcr: GhcrDouble, pusher: Registry) -> None:
    """ECR's is 500, and its answer is that of a registry that takes no pushes at all."""
    ghcr.max_layers = 1
    with pytest.raises(RegistryError, match="NIXCACHE_MAX_LAYERS"):
        await publish(pusher, [store_object("one"), store_object("two")])


async def test_an_index_that_may_not_move_is_named(ghcr: GhcrDouble, pusher: Registry) -> None:
    """Tags that are immutable suit segments, but not the one tag that every publish moves."""
    await publish(pusher, [store_object("one")])
    ghcr.immutable_tag = (409, "TAG_IMMUTABLE")
    with pytest.raises(RegistryError, match="cache-index has to be moved by every publish"):
        await publish(pusher, [store_object("two")], created=CREATED + DAY)


async def test_a_quota_may_have_no_words(ghcr: GhcrDouble, pusher: Registry) -> None:
    """Forgejo answers 403 with nothing in it."""
    ghcr.quota, ghcr.is_quota_silent = 3, True
    with pytest.raises(RegistryError, match="it may also be a quota"):
        await pusher.push_blob(Digest.of(b"blob"), b"blob")


@pytest.mark.parametrize(("host", "origin"), [("", ":80"), (":80", "")])
async def test_a_default_port_may_be_named_or_not(
    ghcr: GhcrDouble, monkeypatch: pytest.MonkeyPatch, host: str, origin: str
) -> None:
    """JFrog's own template for nginx names it in every Location: an upload there keeps its Authorization."""
    ghcr.is_basic, ghcr.relative_location = True, False
    ghcr.origin = f"http://registry.example{origin}"
    monkeypatch.setenv("http_proxy", f"http://{ghcr.host}")
    credentials = Credentials("anyone", ghcr.token, "NIXCACHE_TOKEN_FILE")
    async with opened(f"registry.example{host}", credentials, push=True) as registry:
        await registry.push_blob(Digest.of(b"blob"), b"blob")
    assert ghcr.blobs(NAME) == {Digest.of(b"blob"): 4}


@pytest.mark.parametrize("status", [403, 404])
@pytest.mark.parametrize("is_basic", [False, True])
async def test_who_is_hidden_from_strangers_is_asked_again(
    ghcr: GhcrDouble, *, status: Literal[403, 404], is_basic: bool
) -> None:
    """Strangers may be told that there is nothing: only who showed credentials learns that it is empty."""
    ghcr.put_manifest(NAME, "one", MANIFEST)
    ghcr.anonymous_status, ghcr.is_basic = status, is_basic
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert await registry.list_tags() == ["one"]
        assert await registry.resolve("one") == Digest.of(MANIFEST)
        with pytest.raises(NotFoundError):
            await registry.get_manifest("two")
    assert ghcr.count("ping") == 1
    async with opened(ghcr.host, None) as stranger:
        with pytest.raises(RegistryError, match=str(status)):
            await stranger.list_tags()
    assert ghcr.count("ping") == 1


async def test_credentials_are_shown_where_nobody_asks_for_them(ghcr: GhcrDouble) -> None:
    """A registry that challenges nobody, not even at /v2/, may still hide a repository from strangers."""
    ghcr.put_manifest(NAME, "one", MANIFEST)
    ghcr.anonymous_status, ghcr.is_basic = 404, True
    ghcr.fault("ping", "status", status=200, times=None)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        assert await registry.list_tags() == ["one"]


async def test_a_challenge_is_asked_for_once(ghcr: GhcrDouble) -> None:
    """Where it cannot be met, a 404 is what the registry has to say, at the price of one request."""
    ghcr.anonymous_status = 404
    ghcr.fault("ping", "status", status=401, headers={"WWW-Authenticate": "Negotiate"}, times=None)
    async with opened(ghcr.host, owner(ghcr)) as registry:
        for _ in range(2):
            with pytest.raises(NotFoundError):
                await registry.list_tags()
    assert ghcr.count("ping") == 1


async def test_a_rate_limit_is_no_hidden_repository(ghcr: GhcrDouble) -> None:
    """GitHub says it by 403: asking again at once would prolong it."""
    ghcr.secondary_limit("tags")
    async with opened(ghcr.host, owner(ghcr)) as registry:
        with pytest.raises(RegistryError, match="secondary rate limit"):
            await registry.list_tags()
    assert len(ghcr.requests) == 1
