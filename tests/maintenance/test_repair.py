"""What a repair decides: who is wanted, what leaves, which segments are replaced by what."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from nixcache_oci.cache.record import PinRecord
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import TableHeader
from nixcache_oci.maintenance.problem import Kind, Problem
from nixcache_oci.maintenance.repair.plan import (
    RepairPlan,
    Wanted,
    choose_compression,
    find_leaving,
    find_wanted,
    plan_repair,
)
from nixcache_oci.maintenance.repair.reading import ReadSegment
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.publish import CREATED

LIB = store_object("lib").narinfo
TOOL = store_object("tool", references=(LIB.store_path.base_name,)).narinfo
APP = store_object("app", references=(TOOL.store_path.base_name,)).narinfo
OTHER = store_object("other").narinfo
PIN = PinRecord("release", LIB.store_path, CREATED, "forever")


def segment(
    name: str, *narinfos: NarInfo, is_condemned: bool = False, records: tuple[PinRecord, ...] = ()
) -> ReadSegment:
    annotations = {
        media_type.ANNOTATION_TABLE: str(Digest.of(name.encode())),
        media_type.ANNOTATION_CREATED: "2026-11-21T03:15:00Z",
        media_type.ANNOTATION_PATHS: str(len(narinfos)),
        **({media_type.ANNOTATION_CONDEMNED: "2026-11-21T03:15:00Z"} if is_condemned else {}),
    }
    descriptor = Descriptor(media_type.IMAGE_MANIFEST, Digest.of(name.encode()), 1, annotations=annotations)
    return ReadSegment(
        Segment.from_descriptor(descriptor),
        TableHeader(CREATED),
        {narinfo.store_path.hash_part: narinfo for narinfo in narinfos},
        records,
    )


def problem(kind: Kind, where: ReadSegment, narinfo: NarInfo, lacks: NarInfo | None = None) -> Problem:
    base_name = (lacks or narinfo).store_path.base_name
    return Problem(str(narinfo.store_path), "it is bad", kind, where.tag, base_name)


def plan(
    segments: list[ReadSegment], problems: list[Problem], elsewhere: Iterable[NarInfo] = ()
) -> RepairPlan:
    parts = {one.store_path.hash_part for one in elsewhere}
    return plan_repair(segments, problems, find_leaving(segments, problems, parts))


def names(narinfos: Iterable[NarInfo]) -> set[str]:
    return {narinfo.store_path.name for narinfo in narinfos}


@pytest.mark.parametrize("kind", [Kind.MISSING, Kind.CONTENT, Kind.SIGNATURE, Kind.REFERENCE])
def test_what_refers_to_it_leaves_with_it(kind: Kind) -> None:
    """The served set stays complete: through several segments, and no further."""
    one, other = segment("one", LIB, OTHER, records=(PIN,)), segment("other", TOOL, APP)
    found = plan([one, other], [problem(kind, one, LIB)])
    assert found.unlisted == {
        str(LIB.store_path): "it is bad",
        str(TOOL.store_path): f"it refers to {LIB.store_path.base_name}, which nobody has",
        str(APP.store_path): f"it refers to {TOOL.store_path.base_name}, which nobody has",
    }
    rest, empty = found.rewrites
    assert (names(rest.narinfos), rest.records) == ({"object-other"}, (PIN,))
    assert (empty.narinfos, empty.records) == ((), ())


def test_what_is_elsewhere_takes_nothing_with_it() -> None:
    """A path that an upstream has leaves alone."""
    one = segment("one", LIB, TOOL, APP, OTHER)
    found = plan([one], [problem(Kind.MISSING, one, LIB)], elsewhere=[LIB])
    assert found.unlisted.keys() == {str(LIB.store_path)}
    assert names(found.rewrites[0].narinfos) == {"object-tool", "object-app", "object-other"}
    middle = plan([one], [problem(Kind.MISSING, one, LIB)], elsewhere=[TOOL])
    assert middle.unlisted.keys() == {str(LIB.store_path), str(TOOL.store_path)}


def test_a_good_variant_stays() -> None:
    """Only the bad listing goes, be it in another segment; the good one is not copied."""
    one, good = segment("one", LIB, OTHER), segment("good", LIB, TOOL)
    found = plan([one, good], [problem(Kind.CONTENT, one, LIB)])
    assert (found.unlisted, found.dropped) == ({}, ((str(LIB.store_path), one.tag),))
    assert [names(rewrite.narinfos) for rewrite in found.rewrites] == [{"object-other"}]


def test_what_a_good_segment_holds_is_not_listed_again() -> None:
    """A run that was killed before it deleted anything left copies: the next one makes no more of them."""
    one, copy = segment("one", LIB, OTHER, records=(PIN,)), segment("copy", OTHER, records=(PIN,))
    [rewrite] = plan([one, copy], [problem(Kind.MISSING, one, LIB)]).rewrites
    assert (rewrite.source, rewrite.narinfos, rewrite.records) == (one, (), ())
    condemned = segment("condemned", OTHER, records=(PIN,), is_condemned=True)
    [rewrite] = plan([one, condemned], [problem(Kind.MISSING, one, LIB)]).rewrites
    assert (names(rewrite.narinfos), rewrite.records) == ({"object-other"}, (PIN,))


def test_a_segment_without_a_table_is_lost() -> None:
    """What it listed is not known, and counts as leaving: over half wants force."""
    one = segment("one", LIB, TOOL, APP)
    lost = ReadSegment(segment("lost", OTHER).segment)
    found = plan([one, lost], [Problem(lost.tag, "no table", Kind.SEGMENT, lost.tag)])
    assert (found.lost, found.refusal) == ((lost,), "")
    most = plan([lost], [Problem(lost.tag, "no table", Kind.SEGMENT, lost.tag)])
    assert "1 of 1 path would be unlisted" in most.refusal


def test_over_half_wants_force() -> None:
    """A wrong key, or an upstream that is not named, must not empty a cache."""
    one = segment("one", LIB, TOOL, APP, OTHER)
    assert plan([one], [problem(Kind.SIGNATURE, one, TOOL)]).refusal == ""
    assert "3 of 4 paths" in plan([one], [problem(Kind.SIGNATURE, one, LIB)]).refusal


def test_nothing_leaves_where_nobody_can_tell() -> None:
    """An upstream that cannot be reached is no reason to take anything out."""
    one = segment("one", LIB, TOOL)
    assert plan([one], [problem(Kind.UNKNOWN, one, TOOL, LIB)]) == RepairPlan()


def test_what_is_wanted() -> None:
    """The object itself with the NAR that was listed, or what it refers to with any; nothing that is good."""
    one, other = segment("one", LIB, TOOL), segment("other", OTHER)
    problems = [
        problem(Kind.MISSING, one, LIB),
        problem(Kind.REFERENCE, one, TOOL, APP),
        problem(Kind.SIGNATURE, other, OTHER),
    ]
    wanted = {found.base_name: found for found in find_wanted(problems, [one, other])}
    assert wanted.keys() == {narinfo.store_path.base_name for narinfo in (LIB, APP, OTHER)}
    lib = wanted[LIB.store_path.base_name]
    assert lib.nar_hashes == {LIB.nar_hash}
    assert (lib.has_lost_bytes, lib.has_wrong_bytes) == (True, False)
    assert wanted[APP.store_path.base_name] == Wanted(APP.store_path.base_name)
    assert not wanted[OTHER.store_path.base_name].has_lost_bytes
    assert find_wanted([problem(Kind.MISSING, one, LIB)], [one, segment("good", LIB)]) == []


@pytest.mark.parametrize(
    ("compressions", "chosen"), [((), "zstd"), (("zstd",), "xz"), (("xz",), "zstd"), (("xz", "zstd"), "none")]
)
def test_no_blob_gets_the_digest_of_a_bad_one(compressions: tuple[str, ...], chosen: str) -> None:
    """Other compression, other bytes, other digest; where blobs are only missing, the usual one."""
    bad = [Wanted("x", listed=(replace(LIB, compression=one),), has_wrong_bytes=True) for one in compressions]
    missing = Wanted("y", listed=(replace(LIB, compression="zstd"),), has_lost_bytes=True)
    assert choose_compression([*bad, missing]) == chosen
