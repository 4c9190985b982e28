"""What becomes of each segment: the plan as a table."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from nixcache_oci.cache.moment import Moment
from nixcache_oci.cache.nar_url import NarUrl, describe_nar
from nixcache_oci.cache.record import PublishRecord, Record, UnknownRecord
from nixcache_oci.cache.segment import Segment, build_manifest
from nixcache_oci.cache.table import Table, TableHeader, parse_table, render_table
from nixcache_oci.maintenance.gc.collect import mark
from nixcache_oci.maintenance.gc.gc_plan import GcOptions, GcPlan, plan_gc
from nixcache_oci.maintenance.gc.state import (
    FormerIndex,
    GcState,
    GcTable,
    PathNumbers,
    Place,
    StoredSegment,
    TableRows,
)
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.maintenance.model_publisher import Thing
from tests.support.publish import CREATED

DAY = timedelta(days=1)
NUMBERS = PathNumbers()


def stored(
    day: float,
    *things: Thing,
    records: Sequence[Record] = (),
    condemned: float | None = None,
    place: Place = Place.INDEX,
    merges: Sequence[StoredSegment] = (),
) -> StoredSegment:
    """Make a segment of a day, each thing in a blob of its own."""
    created = CREATED + day * DAY
    narinfos = tuple(thing.narinfo() for thing in things)
    table = Table(TableHeader(created), tuple(records), narinfos)
    text = render_table(table)
    layers = (
        Descriptor(media_type.TABLE, Digest.of(text), len(text)),
        *(describe_nar(NarUrl.parse(one.url).blob, "none", one.file_size or 0) for one in narinfos),
    )
    content = build_manifest(
        layers[0],
        layers[1:],
        created=created,
        paths=len(things),
        source=None,
        merges=[one.manifest for one in merges],
    )
    segment = Segment.from_manifest(content)
    if condemned is not None:
        segment = mark(segment, CREATED + condemned * DAY)
    blobs = {layer.digest: layer.size for layer in layers}
    ordered = parse_table(text).narinfos
    rows = TableRows.of(ordered, blobs, NUMBERS)
    kept = GcTable(table.header, table.records, len(text), rows, lambda: iter(ordered))
    return StoredSegment(segment, place, layers, kept)


def published(day: float, *roots: Thing, scope: str = "main") -> PublishRecord:
    named = tuple((root.path.name, root.path) for root in roots)
    return PublishRecord(scope, f"run-{day}", CREATED + day * DAY, named)


LIB, OLD_LIB = Thing("lib"), Thing("old-lib")
APP = Thing("app", (LIB.base_name,))
OLD_APP = Thing("old-app", (OLD_LIB.base_name,))
OTHER = Thing("other")
LIB_USER = Thing("lib-user", (LIB.base_name,), size=5000)
NOW = 100
OPTIONS = GcOptions()


def plan(*segments: StoredSegment, options: GcOptions = OPTIONS, day: float = NOW) -> GcPlan:
    now = CREATED + day * DAY
    return plan_gc(GcState(now, segments), options, Moment(now))


def actions(made: GcPlan, *segments: StoredSegment) -> list[str]:
    """Tell what becomes of each."""
    found = []
    for one in segments:
        groups = {
            "keep": made.keep,
            "lift": made.lift,
            "wait": made.wait,
            "condemn": made.condemn,
            "rewrite": [source for each in made.rewrite for source in each.sources],
            "merge": [source for each in made.merge for source in each.sources],
            "unlist": made.unlist,
            "delete": made.delete,
        }
        [action] = [name for name, group in groups.items() if one in group]
        found.append(action)
    return found


GOOD = stored(98, LIB, APP, records=[published(98, APP)])
UNREADABLE = stored(1, OTHER, condemned=69)


@pytest.mark.parametrize(
    ("segment", "action"),
    [
        pytest.param(stored(98, OTHER), "condemn", id="dead"),
        pytest.param(stored(99.1, OTHER), "keep", id="dead, and younger than a day"),
        pytest.param(stored(98, OTHER, place=Place.TAG), "condemn", id="dead, found by its tag"),
        pytest.param(stored(1, OTHER, records=[published(1, OTHER)]), "keep", id="superseded two days ago"),
        pytest.param(
            stored(90, records=[published(90, scope="dev")]), "keep", id="the newest publish of a scope"
        ),
        pytest.param(stored(1, records=[published(1, scope="dev")]), "condemn", id="a scope that expired"),
        pytest.param(stored(1, records=[UnknownRecord((("Lease", "x"),))]), "keep", id="an unknown record"),
        pytest.param(stored(1, OTHER, condemned=70.1), "wait", id="a mark within the grace"),
        pytest.param(stored(1, OTHER, condemned=70), "unlist", id="a mark as old as the grace"),
        pytest.param(stored(70.5, OTHER, condemned=69), "wait", id="its tag would bring it back"),
        pytest.param(stored(1, LIB, condemned=69), "unlist", id="what it holds, a good one holds too"),
        pytest.param(stored(1, OTHER, place=Place.UNLISTED), "delete", id="unlisted by an earlier run"),
        pytest.param(stored(71, OTHER, place=Place.UNLISTED), "wait", id="unlisted, and young"),
        pytest.param(StoredSegment(UNREADABLE.segment, Place.INDEX), "unlist", id="condemned, and gone"),
        pytest.param(
            StoredSegment(stored(98, OTHER, condemned=99).segment, Place.INDEX), "unlist", id="gone already"
        ),
    ],
)
def test_one_segment(segment: StoredSegment, action: str) -> None:
    """First condemn, a grace later unlist, a run later delete; what counts is kept."""
    made = plan(GOOD, segment)
    assert actions(made, GOOD, segment) == ["keep", action]
    assert not made.refusals


PART = stored(99.9, LIB, records=[published(99.9, LIB)])


@pytest.mark.parametrize(
    ("merged", "action"),
    [
        pytest.param(stored(100, LIB, APP, records=PART.records, merges=[PART]), "condemn", id="all of it"),
        pytest.param(stored(100, APP, records=PART.records, merges=[PART]), "keep", id="not its path"),
        pytest.param(
            stored(100, LIB, records=[published(1, LIB)], merges=[PART]), "keep", id="not its record"
        ),
        pytest.param(
            stored(100, Thing("lib", size=301), records=PART.records, merges=[PART]),
            "keep",
            id="another build",
        ),
        pytest.param(stored(100, LIB, records=PART.records), "keep", id="it does not name it"),
        pytest.param(
            stored(100, LIB, records=PART.records, merges=[PART], condemned=100), "keep", id="condemned"
        ),
        pytest.param(
            stored(70, LIB, records=PART.records, merges=[PART], place=Place.UNLISTED), "keep", id="unlisted"
        ),
    ],
)
def test_what_was_taken_in_is_condemned_at_once(merged: StoredSegment, action: str) -> None:
    """However young and alive, where a good listed segment has all of it; what that names proves nothing."""
    assert actions(plan(PART, merged), PART) == [action]


def test_a_chain_of_merged_segments_is_condemned_in_one_run() -> None:
    """What is live is in the last one, and nothing is lifted for it; dead paths stay with that."""
    first = stored(99.91, LIB, OTHER, records=PART.records, merges=[PART])
    last = stored(99.92, LIB, OTHER, APP, records=PART.records, merges=[first])
    assert actions(plan(PART, first, last), PART, first, last) == ["condemn", "condemn", "keep"]


@pytest.mark.parametrize("place", [Place.INDEX, Place.UNLISTED])
def test_what_is_needed_again_is_lifted(place: Place) -> None:
    """A root reaches a path that only a condemned or unlisted segment holds."""
    root = stored(98, APP, records=[published(98, APP)])
    former = stored(1, LIB, OTHER, condemned=60, place=place)
    assert actions(plan(root, former), root, former) == ["keep", "lift"]


def test_of_two_condemned_one_is_lifted() -> None:
    """The newest: the other one holds nothing that is needed then."""
    root = stored(98, APP, records=[published(98, APP)])
    one, other = stored(1, LIB, condemned=60), stored(2, LIB, condemned=60)
    assert actions(plan(root, one, other), root, one, other) == ["keep", "unlist", "lift"]


def test_a_record_that_only_a_condemned_segment_holds_is_lifted() -> None:
    """Otherwise its roots would stop counting with it."""
    former = stored(98, LIB, APP, records=[published(98, APP)], condemned=99)
    made = plan(GOOD, stored(97, OTHER, records=[published(97, OTHER, scope="dev")], condemned=99))
    assert len(made.lift) == 1
    assert not plan(GOOD, former).lift


@pytest.mark.parametrize(("dead", "action"), [(300, "keep"), (301, "rewrite")])
def test_a_segment_more_than_half_dead_is_rewritten(dead: int, action: str) -> None:
    """What is live in it, and the records that count, are what is left."""
    record = published(98, OTHER)
    live = [Thing(f"live-{number}", size=100) for number in range(2)]
    root = stored(98, records=[published(98, OTHER, *live)])
    segment = stored(90, OTHER, *live, Thing("dead", size=dead + 200), records=[record])
    made = plan(root, segment)
    assert actions(made, segment) == [action]
    for replacement in made.rewrite:
        assert {narinfo.store_path for narinfo in replacement.narinfos} == {
            thing.path for thing in (OTHER, *live)
        }
        assert replacement.records == (record,)


@pytest.mark.parametrize(("count", "action"), [(8, "keep"), (9, "merge")])
def test_many_of_one_size_are_merged(count: int, action: str) -> None:
    """More than eight of a size class become one."""
    things = [Thing(f"thing-{number}") for number in range(count)]
    segments = [
        stored(90 + number / 100, thing, records=[published(90, thing, scope=str(number))])
        for number, thing in enumerate(things)
    ]
    made = plan(*segments, stored(99.5, OTHER))
    assert set(actions(made, *segments)) == {action}
    for replacement in made.merge:
        assert {narinfo.store_path for narinfo in replacement.narinfos} == {thing.path for thing in things}
        assert set(replacement.records) == {record for one in segments for record in one.records}


def test_sizes_far_apart_are_not_merged() -> None:
    """What is large already is not written again for every few small ones."""
    record = published(98, *(Thing(f"many-{number}") for number in range(400)))
    many = [Thing(f"many-{number}") for number in range(400)]
    large = [stored(90 + number, *many[number * 50 : number * 50 + 50]) for number in range(8)]
    small = [stored(80 + number, Thing(f"small-{number}")) for number in range(8)]
    smalls = published(98, *(Thing(f"small-{number}") for number in range(8)), scope="small")
    assert not plan(*large, *small, stored(99.5, records=[record, smalls])).merge


def test_of_two_variants_the_readers_choice_is_kept() -> None:
    """Two builders raced: a merge keeps the smallest NarHash, as every reader chooses."""
    one, other = Thing("lib"), Thing("lib")
    other.content = b"other bytes"
    segments = [stored(90, one), stored(91, other)]
    segments += [stored(92 + number / 10, Thing(f"x-{number}")) for number in range(7)]
    roots = [published(98, LIB, *(Thing(f"x-{number}") for number in range(7)))]
    [replacement] = plan(*segments, stored(99.5, records=roots)).merge
    [chosen] = [narinfo for narinfo in replacement.narinfos if narinfo.store_path == LIB.path]
    assert chosen.nar_hash == min((one.narinfo().nar_hash, other.narinfo().nar_hash), key=str)


def test_what_is_signed_later_is_kept() -> None:
    """Even by a clock that is behind that of whoever published it unsigned."""
    unsigned, signed = Thing("lib"), Thing("lib", sigs=(SecretKey.generate("later-1").sign("anything"),))
    segments = [stored(90, signed), stored(91, unsigned)]
    segments += [stored(92 + number / 10, Thing(f"x-{number}")) for number in range(7)]
    roots = [published(98, LIB, *(Thing(f"x-{number}") for number in range(7)))]
    [replacement] = plan(*segments, stored(99.5, records=roots)).merge
    [chosen] = [narinfo for narinfo in replacement.narinfos if narinfo.store_path == LIB.path]
    assert chosen.sigs == signed.sigs


def test_dead_paths_leave_with_what_they_refer_to() -> None:
    """A good segment does not keep a dead path whose reference is condemned: both leave at the same time."""
    mixed = stored(90, LIB, APP, OLD_APP, records=[published(98, APP)])
    dead = stored(90, OLD_LIB)
    made = plan(mixed, dead)
    assert actions(made, mixed, dead) == ["rewrite", "condemn"]
    assert {narinfo.store_path for narinfo in made.rewrite[0].narinfos} == {LIB.path, APP.path}


def test_what_served_paths_refer_to_stays_listed() -> None:
    """A mark may be as old as it will: nothing leaves that a listed path refers to."""
    lib = stored(1, OLD_LIB, condemned=60)
    app = stored(2, OLD_APP, condemned=80)
    assert actions(plan(GOOD, lib, app), lib, app) == ["wait", "wait"]
    assert actions(plan(GOOD, lib), lib) == ["unlist"]
    young = stored(99.5, OLD_APP)
    assert actions(plan(GOOD, lib, young), lib, young) == ["wait", "keep"]


def test_no_root_at_all_wants_force() -> None:
    """A cache whose records nobody wrote must not be emptied by a timer."""
    [refusal] = plan(stored(1, OTHER), stored(99.5, LIB, LIB_USER)).refusals
    assert "no root" in refusal


def test_more_than_half_of_the_bytes_wants_force() -> None:
    """Bytes that were condemned before do not count again."""
    large = stored(1, Thing("large", size=700))
    [refusal] = plan(GOOD, large).refusals
    assert "700 of 1300" in refusal
    assert not plan(GOOD, stored(1, Thing("smaller", size=600))).refusals
    assert not plan(GOOD, stored(1, Thing("large", size=700), condemned=99)).refusals


def test_an_index_that_lists_nothing_wants_force() -> None:
    """Somebody wrote an empty one: what their tags know is not what an earlier gc unlisted."""
    made = plan(
        stored(1, OTHER, place=Place.UNLISTED),
        stored(98, LIB, APP, records=[published(98, APP)], place=Place.UNLISTED),
    )
    assert "lists nothing" in made.refusals[0]


def test_an_empty_repository_has_an_empty_plan() -> None:
    """There is nothing to do, and nothing to refuse."""
    made = plan()
    assert made == GcPlan()
    assert not made.changes_index


def test_rows_sum_up_what_is_shown() -> None:
    """Bytes are counted once, and of what is deleted only what nothing else holds."""
    shared = stored(1, LIB, OTHER, place=Place.UNLISTED)
    now = CREATED + NOW * DAY
    old, young = (FormerIndex(Digest.of(bytes([age])), now - age * DAY, 77) for age in (31, 29))
    made = plan_gc(GcState(now, (GOOD, shared), (old, young)), OPTIONS, Moment(now))
    rows = {row.action: row for row in made.rows()}
    assert list(rows) == ["keep", "lift", "wait", "condemn", "rewrite", "merge", "unlist", "delete", "sweep"]
    assert (rows["keep"].segments, rows["keep"].paths) == (1, 2)
    assert rows["keep"].size == GOOD.segment.descriptor.size + sum(layer.size for layer in GOOD.layers)
    assert rows["delete"].size == shared.segment.descriptor.size + shared.layers[0].size + len(OTHER.content)
    assert (rows["sweep"].segments, rows["sweep"].size) == (1, 77)


def test_ages_are_options() -> None:
    """Every age can be set."""
    at_once = GcOptions(retention=timedelta(0), grace=timedelta(0), min_age=timedelta(0))
    former = stored(99, OTHER, records=[published(99, OTHER)])
    newer = stored(99.5, APP, LIB, records=[published(99.5, APP)])
    marked = stored(98, LIB_USER, condemned=99.9)
    assert actions(plan(former, newer, marked, options=at_once), former, newer, marked) == [
        "condemn",
        "keep",
        "unlist",
    ]
