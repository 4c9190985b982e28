"""What an index remembers of what it names no more."""

from dataclasses import replace
from datetime import timedelta

import pytest

from nixcache_oci.cache.cache_index import MAX_INDEX_BYTES, CacheIndex
from nixcache_oci.cache.commit import list_segments
from nixcache_oci.cache.former import MAX_FORMER, VersionTag, forgetting, read_former, remembering
from nixcache_oci.cache.segment import Segment, SegmentTag
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.cache.writer import push_segment
from nixcache_oci.oci import media_type
from nixcache_oci.oci.digest import Digest
from tests.cache.test_commit import table
from tests.support.interleaving import no_sleep, nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.publish import CREATED

SECOND = timedelta(seconds=1)


def names(count: int) -> list[Digest]:
    return [Digest.of(str(number).encode()) for number in range(count)]


def noted(text: str) -> CacheIndex:
    index = CacheIndex()
    return replace(
        index, image_index=replace(index.image_index, annotations={media_type.ANNOTATION_FORMER: text})
    )


def test_it_survives_writing_and_reading() -> None:
    """With the time at which each was seen to be replaced first; who is gone leaves nothing behind."""
    first, second = names(2)
    index = remembering(CacheIndex(), [first], CREATED)
    index = remembering(index, [first, second], CREATED + SECOND)
    index = CacheIndex.parse(index.render())
    assert read_former(index) == {first: CREATED, second: CREATED + SECOND}
    assert read_former(forgetting(index, {first})) == {second: CREATED + SECOND}
    assert forgetting(index, {Digest.of(b"another")}) is index
    empty = forgetting(index, {first, second})
    assert media_type.ANNOTATION_FORMER not in empty.image_index.annotations


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "yes", "a" * 64, f"{'a' * 64} 2026-01-01T00:00:00Z "),
        f"{'a' * 64} 2026-13-01T00:00:00Z",
        f"{'A' * 64} 2026-01-01T00:00:00Z",
        f"{'a' * 64}  2026-01-01T00:00:00Z",
    ],
)
def test_what_is_malformed_is_nothing(text: str) -> None:
    """Then something stays for longer, and nothing is lost."""
    assert read_former(noted(text)) == {}


def test_no_time_is_in_the_future() -> None:
    """A wrong clock, or a writer who means harm, would keep it for ever."""
    [name] = names(1)
    index = noted(f"{name.hex} 9999-12-31T23:59:59Z")
    assert read_former(remembering(index, [], CREATED)) == {name: CREATED}


def test_the_newest_are_kept() -> None:
    """The list has a bound, on reading as on writing, and gives way to what the index lists."""
    many = names(MAX_FORMER + 5)
    text = " ".join(f"{one.hex} {format_time(CREATED + n * SECOND)}" for n, one in enumerate(many))
    assert list(read_former(noted(text))) == many[5:]
    newest = Digest.of(b"newest")
    later = CREATED + 2 * MAX_FORMER * SECOND
    assert list(read_former(remembering(noted(text), [newest], later))) == [*many[6:], newest]
    filler = {"filler": "x" * (MAX_INDEX_BYTES - 50_000)}
    full = noted(text)
    full = replace(
        full, image_index=replace(full.image_index, annotations={**full.image_index.annotations, **filler})
    )
    kept = list(read_former(CacheIndex.parse(remembering(full, [newest], later).render())))
    assert 100 < len(kept) < 600
    assert kept == [*many, newest][-len(kept) :]


@pytest.mark.parametrize(
    "tag",
    [
        *("cache-index", "cache-index-", f"cache-index-20261121t031500z-{'a' * 63}"),
        f"cache-index-20261121T031500Z-{'A' * 64}",
        f"cache-index-20261321t031500z-{'a' * 64}",
        f"segment-20261121t031500z-{'a' * 64}",
    ],
)
def test_any_other_tag_is_not_a_versions(tag: str) -> None:
    """Nor does a version's tag count as a segment's."""
    assert VersionTag.parse(tag) is None
    [manifest] = names(1)
    text = str(VersionTag(CREATED, manifest))
    assert text == f"cache-index-20261121t031500z-{manifest.hex}"
    assert VersionTag.parse(text) == VersionTag(CREATED, manifest)
    assert SegmentTag.parse(text) is None


class ForgetfulRepository(ModelRepository):
    can_list_untagged = False


async def _publish(repository: ModelRepository, number: int) -> Segment:
    segment = await push_segment(repository, table(number), [])
    await list_segments(repository, [segment], clock=lambda: CREATED + number * SECOND, sleep=no_sleep)
    return segment


async def test_each_writer_remembers_what_it_replaced() -> None:
    """Where nobody can list it; what is listed again is forgotten, and a second try remembers the first."""
    storage = ModelStorage()
    await _publish(ForgetfulRepository(storage, nothing), 1)
    replaced = [storage.tags["cache-index"]]
    others: list[Digest] = []

    async def compete(step: str) -> None:
        if step == "resolve cache-index" and storage.tags["cache-index"] not in replaced and not others:
            # Another writer read the same index, and overwrites this one's.
            others.append(storage.tags["cache-index"])
            storage.tags["cache-index"] = replaced[0]

    await _publish(ForgetfulRepository(storage, compete), 2)
    index = CacheIndex.parse(storage.manifests[storage.tags["cache-index"]])
    assert read_former(index).keys() == {*replaced, *others}
    assert storage.manifests.keys() >= {*replaced, *others}


async def test_a_version_has_its_own_tag_before_it_counts() -> None:
    """Only where the registry keeps what an index lists: elsewhere, not one request is added."""
    steps: list[str] = []

    async def note(step: str) -> None:
        if step.startswith("push manifest cache-index"):
            steps.append(step.split(" ")[2])

    repository = ForgetfulRepository(ModelStorage(), note)
    await _publish(repository, 1)
    assert steps == ["cache-index"]
    repository.keeps_listed = True
    await _publish(repository, 2)
    manifest = await repository.resolve("cache-index")
    assert steps[1:] == [str(VersionTag(CREATED + 2 * SECOND, manifest)), "cache-index"]
    repository.can_list_untagged = True
    await _publish(repository, 3)
    assert steps[3:] == ["cache-index"]


async def test_nothing_is_noted_where_it_can_be_listed() -> None:
    """At GitHub, whose API tells, and in a layout: there the index stays as small as it was."""
    storage = ModelStorage()
    for number in range(3):
        await _publish(ModelRepository(storage, nothing), number)
    assert b"dev.nixcache.former" not in b"".join(storage.manifests.values())
