"""Deleting at registries that refuse what a tag or an index still names, each in its own way."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from nixcache_oci.clients.registry.client import RegistryRemover
from nixcache_oci.errors import ReferencedError, RegistryError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.media_type import IMAGE_INDEX, IMAGE_MANIFEST
from tests.clients.registry_helper import NAME, opened, owner
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_manners import PERSONAS, Manners, Refusal
from tests.support.skopeo import manifest_of

TAG = f"segment-20261121T031500Z-{'a' * 64}"
DANGLING_TAG = (400, "GOOGLE_MANIFEST_DANGLING_TAG")
DANGLING_PARENT = (400, "GOOGLE_MANIFEST_DANGLING_PARENT_IMAGE")


class Story:
    """A double with two tagged manifests, one of which an index lists."""

    def __init__(self, ghcr: GhcrDouble) -> None:
        ghcr.deletes = True
        self.ghcr = ghcr
        self.tagged = self.put(TAG, b"one")
        self.listed = self.put("listed", b"two")
        listed = {"mediaType": IMAGE_MANIFEST, "digest": str(self.listed), "size": 3}
        index = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [listed]}).encode()
        self.index = ghcr.put_manifest(NAME, None, index, IMAGE_INDEX)

    def put(self, tag: str, layer: bytes) -> Digest:
        return self.ghcr.put_manifest(NAME, tag, manifest_of(layer))

    @property
    def held(self) -> set[Digest]:
        return set(self.ghcr.manifests(NAME))

    @asynccontextmanager
    async def remover(self) -> AsyncIterator[RegistryRemover]:
        async with opened(self.ghcr.host, owner(self.ghcr), push=True, delete=True) as registry:
            yield RegistryRemover(registry)


@pytest.fixture
def story() -> Iterator[Story]:
    with GhcrDouble() as ghcr:
        yield Story(ghcr)


async def test_a_tag_goes_first_where_it_has_to(story: Story) -> None:
    """Google and Docker Hub refuse a manifest with a tag: nowhere else are more requests made for it."""
    async with story.remover() as remover:
        await remover.remove(story.tagged, [TAG])
        assert story.ghcr.count("tags") == 0
        other = story.put(TAG, b"three")
        story.ghcr.deletes_tags, story.ghcr.still_tagged = True, DANGLING_TAG
        # A writer of before wrote it in upper case, and who looks for it does not know that.
        await remover.remove(other, [TAG.lower()])
        await remover.remove(other, [TAG])
    assert story.held == {story.listed, story.index}
    assert list(story.ghcr.tags(NAME)) == ["listed"]


@pytest.mark.parametrize("status", [400, 403, 409])
async def test_any_such_status_may_be_about_a_tag(story: Story, status: int) -> None:
    """Not every registry has a code for it."""
    story.ghcr.deletes_tags, story.ghcr.still_tagged = True, (status, "DENIED")
    async with story.remover() as remover:
        await remover.remove(story.tagged, [TAG])
    assert story.tagged not in story.held


async def test_a_tag_that_nobody_names_stays(story: Story) -> None:
    """A tag of a user's keeps its manifest."""
    story.ghcr.deletes_tags, story.ghcr.still_tagged = True, DANGLING_TAG
    async with story.remover() as remover:
        for tags in ([], ["other"]):
            with pytest.raises(
                RegistryError, match=r"400 GOOGLE_MANIFEST_DANGLING_TAG .*still tagged"
            ) as raised:
                await remover.remove(story.tagged, tags)
            assert "does not delete" not in str(raised.value)
    assert TAG in story.ghcr.tags(NAME)


async def test_a_registry_that_keeps_tags_is_named(story: Story) -> None:
    """Both refusals are told: one is what is wanted, the other why it could not be had."""
    story.ghcr.still_tagged = DANGLING_TAG
    async with story.remover() as remover:
        with pytest.raises(
            RegistryError, match=r"DANGLING_TAG.*nor was its tag taken away.*400 DIGEST_INVALID"
        ) as raised:
            await remover.remove(story.tagged, [TAG])
    assert not isinstance(raised.value, ReferencedError)
    assert story.tagged in story.held


_REFERENCED = [persona.still_referenced for persona in PERSONAS.values() if persona.still_referenced]


@pytest.mark.parametrize(
    "refusal", [*_REFERENCED, (405, "DENIED"), (412, "")], ids=lambda one: " ".join(map(str, one))
)
async def test_what_an_index_lists_is_told_apart(story: Story, refusal: Refusal) -> None:
    """It goes when the index has gone, and no right is missing."""
    story.ghcr.still_referenced = refusal
    async with story.remover() as remover:
        with pytest.raises(ReferencedError) as raised:
            await remover.remove(story.listed, ["listed"])
        assert not raised.value.is_temporary
        assert "does not delete" not in str(raised.value)
        await remover.remove(story.index)
        await remover.remove(story.listed, ["listed"])
    assert story.held == {story.tagged}


@pytest.mark.parametrize("message", ["requested access to the resource is denied", ""])
async def test_who_could_take_the_tag_lacks_no_right(story: Story, message: str) -> None:
    """Docker Hub may answer the same 403 for the tag and for the index, without a word."""
    story.ghcr.deletes_tags = True
    body = json.dumps({"errors": [{"code": "DENIED", "message": message}]}).encode() if message else b""
    async with story.remover() as remover:
        await remover.remove(Digest.of(b"never there"))  # from here on it has a token
        story.ghcr.fault("DELETE .*sha256", "status", status=403, body=body, times=2)
        with pytest.raises(ReferencedError, match="its tag is gone, so an image index may still list it"):
            await remover.remove(story.listed, ["listed"])
        await remover.remove(story.listed, ["listed"])


async def test_a_temporary_failure_of_the_tag_is_temporary(story: Story) -> None:
    """The next run goes on."""
    story.ghcr.deletes_tags, story.ghcr.still_tagged = True, DANGLING_TAG
    story.ghcr.fault(f"DELETE .*{TAG}", "status", status=503, times=None)
    async with story.remover() as remover:
        with pytest.raises(RegistryError, match="503") as raised:
            await remover.remove(story.tagged, [TAG])
    assert raised.value.is_temporary


async def test_quay_deletes_for_who_may_push(story: Story) -> None:
    """Its token service knows no right to delete."""
    story.ghcr.refuses_delete_scope, story.ghcr.delete_right = True, "push"
    async with story.remover() as remover:
        await remover.remove(story.tagged, [TAG])
    assert story.tagged not in story.held


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"code": "GOOGLE_MANIFEST_DANGLING_PARENT_IMAGE"}),
        (403, {"code": "DENIED", "message": "the image is referenced by another"}),
        (409, {"code": "MANIFEST_REFERENCED"}),
        (412, {}),
        (400, {"code": "VIOLATE_FOREIGN_KEY_CONSTRAINT"}),
    ],
)
async def test_any_of_status_code_and_words_tells_it(
    story: Story, status: int, error: dict[str, str]
) -> None:
    """Each registry says it by one of them."""
    body = json.dumps({"errors": [error]}).encode()
    headers = {"Content-Type": "application/json"}
    story.ghcr.fault("manifest-delete", "status", status=status, body=body, headers=headers, times=None)
    async with story.remover() as remover:
        with pytest.raises(ReferencedError):
            await remover.remove(story.listed)


@pytest.mark.parametrize("persona", ["ghcr", *PERSONAS])
async def test_who_keeps_what_an_index_lists_is_known_by_its_challenge(story: Story, persona: str) -> None:
    """From the first request on, without one more; GitLab and Forgejo name their services alike."""
    manners = PERSONAS.get(persona, Manners())
    story.ghcr.behave(manners)
    story.ghcr.name_parts = None
    async with opened(story.ghcr.host, owner(story.ghcr), push=True) as registry:
        assert not registry.keeps_listed
        await registry.list_tags()
        assert registry.keeps_listed == (manners.still_referenced is not None)
        assert story.ghcr.count("ping") == 0
