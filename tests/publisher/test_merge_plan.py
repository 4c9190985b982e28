"""Which small segments are merged, and which bytes move for it: the decisions as tables."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.record import PublishRecord, Record
from nixcache_oci.cache.segment import MAX_MERGED, Segment, build_manifest
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.cache.writer import SegmentOptions
from nixcache_oci.maintenance.gc.collect import mark
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from nixcache_oci.publisher import merge_plan
from nixcache_oci.publisher.merge_plan import (
    Part,
    choose_merged,
    find_small,
    is_due,
    plan_merge,
)
from tests.maintenance.model_publisher import Thing
from tests.support.publish import CREATED

SECOND = timedelta(seconds=1)
KIB, MIB = 1024, 1024 * 1024
OPTIONS = SegmentOptions()


def segment(number: int, paths: int = 1) -> Segment:
    table = Descriptor(media_type.TABLE, Digest.of(str(number).encode()), 1)
    created = CREATED + number * SECOND
    return Segment.from_manifest(build_manifest(table, [], created=created, paths=paths, source=None))


def part(
    number: int, *things: Thing, blobs: Sequence[Descriptor] = (), records: Sequence[Record] = ()
) -> Part:
    narinfos = tuple(thing.narinfo() for thing in things)
    own = [describe_nar(NarUrl.parse(one.url).blob, "none", one.file_size or 0) for one in narinfos]
    return Part(
        segment(number, len(things)),
        TableHeader(CREATED + number * SECOND),
        tuple(records),
        narinfos,
        {blob.digest: blob for blob in (*own, *blobs)},
    )


def blob(name: str, size: int, kind: str = media_type.NAR_ZSTD) -> Descriptor:
    return Descriptor(kind, Digest.of(name.encode()), size)


def test_one_of_the_last_eight_merges_in_whichever_order_they_are_seen() -> None:
    """Those who see the same agree on who it is, however their times are ordered; beyond 32 all merge."""
    chance = random.Random(1)
    for count in range(1, 35):
        small = [segment(number) for number in range(count)]
        due = [one for one in small if is_due(small, [one])]
        assert len(due) == (0 if count <= 16 else 1 if count <= 32 else count)
        last = chance.sample(small[-8:], min(count, 8))
        assert {one for one in small if is_due([*small[:-8], *last], [one])} == set(due)
        assert count > 32 or set(due) <= set(last)


def test_the_turn_comes_where_publishes_are_listed_in_another_order_than_they_began() -> None:
    """Each second one is listed before the one that began before it: none sees itself at any certain rank."""
    listed: list[Segment] = []
    due = []
    for first in range(-1, 30, 2):
        for number in (first + 1, first):
            listed.append(segment(number))
            if is_due(find_small(listed), [listed[-1]]):
                due.append(number)
    assert due
    assert len(due) < len(listed) // 4


def test_what_is_condemned_or_large_is_left_alone() -> None:
    """The one may be deleted while it is merged, the other is gc's business."""
    large, gone = segment(1, 4097), mark(segment(2), CREATED)
    assert find_small([segment(4, 4096), segment(3), large, gone]) == [segment(3), segment(4, 4096)]


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        pytest.param([1] * 17, [1] * 17, id="all of one class"),
        pytest.param([1] * 10 + [9] * 7, [1] * 10, id="the smallest class, if few are left then"),
        pytest.param([9] * 10 + [8] * 7, [8] * 7 + [9] * 10, id="two classes, the smaller first"),
        pytest.param([500] * 9 + [1] * 8, [1] * 8 + [500] * 9, id="too many are left of a larger class"),
        pytest.param([600] * 7 + [1] * 10, [1] * 10, id="large ones stay"),
        pytest.param([1] * 100, [1] * MAX_MERGED, id="64 at once"),
        pytest.param([0] * 17, [0] * 17, id="records alone"),
    ],
)
def test_classes_from_the_smallest_upward(paths: Sequence[int], chosen: Sequence[int]) -> None:
    """Each byte moves once or twice in its life, and few segments are left."""
    small = [segment(number, count) for number, count in enumerate(paths)]
    sizes = {one.table: 1000 * one.paths for one in small}
    assert [one.paths for one in choose_merged(small, sizes)] == chosen


def test_tables_that_are_unreadable_or_too_large_together_are_left_out() -> None:
    """What cannot be read cannot be taken in, and 8 MiB of tables are a second's work."""
    small = [segment(number) for number in range(17)]
    sizes = {one.table: 3 * MIB for one in small[1:]}
    assert choose_merged(small, sizes) == small[1:3]


def test_small_blobs_move_and_large_ones_stay() -> None:
    """NARs up to 256 KiB and packs of less than 1 MiB: a reader then fetches few packs."""
    moving = [blob("nar", 256 * KIB), blob("pack", MIB - 1, media_type.PACK)]
    staying = [blob("large nar", 256 * KIB + 1), blob("full pack", MIB, media_type.PACK)]
    made = plan_merge([part(1, blobs=moving), part(2, blobs=staying)], OPTIONS)
    assert made is not None
    assert set(made.moving) == {one.digest for one in moving}
    assert set(made.blobs) == {one.digest for one in (*moving, *staying)}


A, OTHER_A, B = Thing("a"), Thing("a", size=301), Thing("b")


@pytest.mark.parametrize(
    ("parts", "taken"),
    [
        pytest.param([part(1, A), part(2, A, B)], [1, 2], id="the same build"),
        pytest.param([part(1, A), part(2, OTHER_A), part(3, B)], [1, 3], id="another build"),
        pytest.param(
            [part(n, blobs=[blob(f"{n}-{m}", 256 * KIB) for m in range(20)]) for n in range(5)],
            [0, 1, 2],
            id="16 MiB move",
        ),
        pytest.param(
            [part(0, blobs=[blob(f"{m}", 256 * KIB) for m in range(65)]), part(1, A), part(2, B)],
            [1, 2],
            id="one that is too much alone",
        ),
        pytest.param(
            [part(n, blobs=[blob(f"{n}-{m}", MIB) for m in range(900)]) for n in range(3)],
            [0, 1],
            id="layers of one manifest",
        ),
    ],
)
def test_parts_are_taken_as_long_as_they_fit(parts: Sequence[Part], taken: Sequence[int]) -> None:
    """Into one segment, its table listing each path once; what does not fit waits for gc."""
    made = plan_merge(parts, OPTIONS)
    assert made is not None
    assert [one.segment.created for one in made.parts] == [segment(n).created for n in taken]


def test_one_alone_is_not_merged() -> None:
    """That would gain nothing."""
    assert plan_merge([part(1, A), part(2, OTHER_A)], OPTIONS) is None


def test_a_registrys_limits_hold() -> None:
    """A manifest of few layers, or a table of few bytes, has no space for others."""
    parts = [part(1, A), part(2, B)]
    assert plan_merge(parts, SegmentOptions(max_layers=500)) is not None
    assert plan_merge(parts, SegmentOptions(max_blob_bytes=1000)) is None


def test_nothing_is_lost_of_what_vouches() -> None:
    """Every signature of a path stays, and every record, once; the newest narinfo gives the URL."""
    first, second = (SecretKey.generate(name) for name in ("first-1", "second-1"))
    older = part(1, Thing("a", sigs=(first.sign(fingerprint(A.narinfo())),)), records=[record("x")])
    newer = part(
        2, Thing("a", sigs=(second.sign(fingerprint(A.narinfo())),)), records=[record("x"), record("y")]
    )
    elsewhere = replace(newer.narinfos[0], url=str(NarUrl(Digest.of(b"pack"), 0, 300)))
    made = plan_merge([older, replace(newer, narinfos=(elsewhere,))], OPTIONS)
    assert made is not None
    assert [(one.url, {sig.key_name for sig in one.sigs}) for one in made.narinfos] == [
        (elsewhere.url, {"first-1", "second-1"})
    ]
    assert made.records == (record("x"), record("y"))


def test_records_that_need_a_table_of_their_own_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A merged segment is one segment: what it names is in it."""
    monkeypatch.setattr(merge_plan, "MAX_RECORD_BYTES", 100)
    made = plan_merge([part(1, A, records=[record("x" * 100)]), part(2, B), part(3)], OPTIONS)
    assert made is not None
    assert made.records == ()


def record(scope: str) -> PublishRecord:
    return PublishRecord(scope, "run", CREATED)


def test_the_counts_hold_in_a_year_of_publishes() -> None:
    """Of 1 to 20 paths, one after another or four at a time: at most 40 small segments at any time."""
    for at_once in (1, 4):
        live: list[Segment] = []
        most = 0
        for number in range(0, 5000, at_once):
            mine = [
                segment(100_000 * at_once + number + one, (number * 7 + one) % 20 + 1)
                for one in range(at_once)
            ]
            live += mine
            most = max(most, len(live))
            small = find_small(live)
            if any(is_due(small, [one]) for one in mine):
                chosen = choose_merged(small, {one.table: 1000 * one.paths for one in small})
                merged = segment(10_000_000 + number, sum(one.paths for one in chosen))
                live = [one for one in live if one not in chosen] + [merged]
                live[-1] = replace(merged, created=mine[-1].created)
        assert most <= 40
