"""A registry that shows an older state than it did is noticed; what gc does is not taken for that."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from nixcache_oci.cache.cache_index import CacheIndex
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import FormatError
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.counters import Counters
from nixcache_oci.proxy.live_index import LiveIndex
from nixcache_oci.proxy.regression import MAX_MISSING, Seen
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish
from tests.support.registries import Ghcr

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
NOW = CREATED + 100 * DAY


def segment(age: timedelta, *, condemned: datetime | None = None) -> Segment:
    digest = Digest.of(str(age).encode())
    descriptor = Descriptor(media_type.IMAGE_MANIFEST, digest, 1)
    return Segment(descriptor, digest, NOW - age, 1, condemned)


OLD, MIDDLE, NEW = segment(90 * DAY), segment(50 * DAY), segment(40 * DAY)
MARKED = replace(NEW, condemned=NOW - 31 * DAY)


def seen_of(*segments: Segment, ago: timedelta = HOUR) -> Seen:
    return Seen().after_look((), segments, NOW - ago)


@pytest.mark.parametrize(
    ("before", "listed", "ago", "missing", "is_older"),
    [
        ((OLD, NEW), (OLD, NEW), HOUR, 0, False),
        ((OLD,), (OLD, NEW), HOUR, 0, False),
        # What is gone without a mark, within a day of being seen.
        ((OLD, MIDDLE, NEW), (OLD, NEW), HOUR, 1, False),
        ((OLD, MIDDLE, NEW), (OLD,), HOUR, 2, True),
        ((OLD, NEW), (), HOUR, 2, True),
        # Later, only the newest one tells; a marked one, and one that nobody saw for a month, may be gone.
        ((OLD, MIDDLE, NEW), (OLD, NEW), 2 * DAY, 0, False),
        ((OLD, MIDDLE, NEW), (OLD, MIDDLE), 2 * DAY, 0, True),
        ((OLD, MIDDLE, NEW), (OLD, MIDDLE), 31 * DAY, 0, False),
        ((OLD, MARKED), (OLD,), HOUR, 0, False),
        ((OLD, MARKED), (), HOUR, 1, False),
        # gc merges old ones into a new one: they are marked, listed for the grace, and then gone.
        ((OLD, MIDDLE), (replace(OLD, condemned=NOW), replace(MIDDLE, condemned=NOW), NEW), HOUR, 0, False),
    ],
)
def test_what_counts(
    before: tuple[Segment, ...],
    listed: tuple[Segment, ...],
    ago: timedelta,
    missing: int,
    *,
    is_older: bool,
) -> None:
    """Every rule as a row."""
    former = seen_of(*before, ago=ago)
    seen = former.after_look(before, listed, NOW)
    assert (len(seen.missing), seen.older_since is not None) == (missing, is_older)
    assert seen.is_worse_than(former) == bool(missing or is_older)
    assert (seen.regressed_since is not None) == bool(missing or is_older)
    again = seen.after_look(listed, listed, NOW + HOUR)
    assert not again.is_worse_than(seen)
    assert again.regressed_since == seen.regressed_since
    assert again.after_look(listed, (*before, *listed), NOW + 2 * HOUR).regressed_since is None


def test_what_is_missing_is_not_remembered_for_ever() -> None:
    """An owner who began anew needs no help to get rid of the notice."""
    seen = seen_of(OLD, MIDDLE, NEW).after_look((OLD, MIDDLE, NEW), (NEW,), NOW)
    assert len(seen.missing) == 2
    assert seen.after_look((NEW,), (NEW,), NOW + 31 * DAY) == Seen(NOW + 31 * DAY, NEW.created, NEW.created)


def test_it_outlives_the_process() -> None:
    """What is on disk is what was seen, but for what is listed now."""
    seen = seen_of(OLD, MIDDLE, NEW).after_look((OLD, MIDDLE, NEW), (OLD,), NOW)
    assert Seen.from_json(seen.to_json().encode()) == replace(seen, newest_now=None)
    assert Seen.from_json(Seen().to_json().encode()) == Seen()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"looked": 1, "newest": null, "older_since": null, "missing": {}}',
        b'{"looked": "x", "newest": null, "older_since": null, "missing": {}}',
        b'{"looked": null, "newest": null, "older_since": null, "missing": {"a": 1}}',
    ],
)
def test_a_damaged_memory_is_refused(content: bytes) -> None:
    """It says that it is unusable, and nothing else."""
    with pytest.raises(FormatError, match="what was seen of the cache"):
        Seen.from_json(content)


@pytest.fixture
async def client(ghcr: Ghcr) -> AsyncIterator[Registry]:
    client = ghcr.client()
    yield client
    await client.close()


def proxy(client: Registry, folder: Path, counters: Counters) -> LiveIndex:
    return LiveIndex(client, IndexFolder(folder, client.name), (), 300, counters)


async def test_a_collection_is_no_regression(client: Registry, tmp_path: Path) -> None:
    """gc marks, and takes out what is marked; both are seen, and neither is flagged."""
    first = await publish(client, [store_object("one")])
    await publish(client, [store_object("two")], created=CREATED + HOUR)
    counters = Counters()
    index = proxy(client, tmp_path, counters)
    await index.refresh(thoroughly=True)
    listed = (await read_listing(client)).segments
    mark = {media_type.ANNOTATION_CONDEMNED: "2026-11-21T05:15:00Z"}
    for segments in (
        [
            Segment.from_descriptor(
                replace(one.descriptor, annotations={**one.descriptor.annotations, **mark})
            )
            if one.manifest == first.manifest
            else one
            for one in listed
        ],
        [one for one in listed if one.manifest != first.manifest],
    ):
        content = CacheIndex(tuple(segments), watermark=CREATED + 2 * HOUR).render()
        await client.push_manifest("cache-index", content, media_type.IMAGE_INDEX)
        await index.refresh(thoroughly=False)
        assert index.watch.seen.regressed_since is None
    assert index.segments == 1
    assert counters.index_regressions == 0


async def test_a_memory_that_is_damaged_is_replaced(
    client: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A crash or a full disk may leave anything; the cache is served all the same."""
    await publish(client, [store_object("one")])
    index = proxy(client, tmp_path, Counters())
    file = IndexFolder(tmp_path, client.name).path / "seen.json"
    file.write_bytes(b"{")
    await index.refresh(thoroughly=True)
    assert "what was seen before is unusable" in caplog.text
    assert Seen.from_json(file.read_bytes()).newest == CREATED


def test_few_missing_segments_are_remembered() -> None:
    """A registry that lists others at each look would fill memory, disk and /_status."""
    looks = [tuple(segment(timedelta(hours=100 * look + n)) for n in range(100)) for look in range(6)]
    seen = seen_of(*looks[0])
    for before, listed in pairwise(looks):
        seen = seen.after_look(before, listed, NOW)
    assert len(seen.missing) == MAX_MISSING
    # What was noticed first stays, until it is listed again.
    assert {str(one.tag) for one in looks[0]} <= seen.missing.keys()
    assert not {str(one.tag) for one in looks[0]} & seen.after_look((), looks[0], NOW).missing.keys()
    many = {str(segment(timedelta(hours=n)).tag): format_time(NOW) for n in range(1000)}
    saved = {**json.loads(seen.to_json()), "missing": many}
    assert len(Seen.from_json(json.dumps(saved).encode()).missing) == MAX_MISSING
