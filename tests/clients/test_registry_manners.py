"""What other registries do otherwise than GHCR, each against its double."""

import pytest

from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import RegistryError
from tests.clients.registry_helper import MANIFEST, NAME
from tests.support.ghcr import GhcrDouble

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
