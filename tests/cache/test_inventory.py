"""The inventory: everything that a cache lists, each path once, and nothing stops at what is malformed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.inventory import VERSION1, Inventory, Listed
from nixcache_oci.cache.listing import Listing
from nixcache_oci.cache.record import PinRecord, PublishRecord, Record
from nixcache_oci.cache.segment import Segment
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.table_set import TableSet
from nixcache_oci.cache.timestamp import format_time
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import COMPRESSIONS, NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import Descriptor
from nixcache_oci.oci.digest import Digest
from tests.support.objects import store_object
from tests.support.publish import CREATED

KEY = SecretKey.generate("inventory-1")
A, B = store_object("a").narinfo, store_object("b").narinfo
DAY = timedelta(days=1)


@dataclass
class Cache:
    """Segments on disk, one table after the other."""

    folder: IndexFolder
    segments: list[Segment]
    tables: dict[Digest, TableFile]
    version1: Digest | None = None

    def add(
        self,
        *narinfos: NarInfo,
        records: tuple[Record, ...] = (),
        days: int = 0,
        condemned: bool = False,
        change: Callable[[str], str] = str,
    ) -> str:
        """Add a segment; ``change`` may spoil its text. Gives its tag."""
        created = CREATED + days * DAY
        text = change(render_table(Table(TableHeader(created), records, narinfos)).decode())
        table = self._write(text.encode())
        segment = segment_of(table, created, condemned=condemned)
        self.segments.append(segment)
        return str(segment.tag)

    def add_version1(self, *narinfos: NarInfo) -> None:
        self.version1 = self._write(render_table(Table(TableHeader(CREATED), (), narinfos)))

    def inventory(self) -> Inventory:
        listing = Listing(segments=tuple(self.segments), version1=self.version1)
        return Inventory(TableSet.of(listing, self.tables))

    def _write(self, text: bytes) -> Digest:
        digest = Digest.of(text)
        writer = self.folder.table_writer(digest)
        writer.write_text(text)
        self.tables[digest] = writer.finish(digest)
        writer.close()
        return digest


def segment_of(table: Digest, created: datetime, *, condemned: bool) -> Segment:
    notes = {
        media_type.ANNOTATION_TABLE: str(table),
        media_type.ANNOTATION_CREATED: format_time(created),
        media_type.ANNOTATION_PATHS: "1",
    }
    if condemned:
        notes[media_type.ANNOTATION_CONDEMNED] = format_time(created + 9 * DAY)
    manifest = Digest.of(f"{table} {created}".encode())
    return Segment.from_descriptor(Descriptor(media_type.IMAGE_MANIFEST, manifest, 1, annotations=notes))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(IndexFolder(tmp_path, "test"), [], {})


def variant(number: int, narinfo: NarInfo = A) -> NarInfo:
    """The same object, built again with other bytes."""
    return replace(narinfo, nar_hash=NixHash(bytes([number]) * 32))


def signed(narinfo: NarInfo) -> NarInfo:
    return replace(narinfo, sigs=(KEY.sign(fingerprint(narinfo)),))


def test_nothing() -> None:
    """An empty cache has nothing, and that is an answer."""
    inventory = Inventory(TableSet())
    assert (inventory.contents().paths, inventory.roots(), list(inventory.entries())) == ((), [], [])
    assert inventory.find(A.store_path.hash_part) == []


def test_a_path_is_listed_once(cache: Cache) -> None:
    """What gc has merged is in two segments for a month; the condemned one is not what counts."""
    cache.add(A, B, condemned=True, days=1)
    cache.add(A)
    found = {listed.store_path: listed for listed in cache.inventory().contents().paths}
    assert len(found) == 2
    assert (found[A.store_path].published, found[A.store_path].is_condemned) == (CREATED, False)
    assert (found[B.store_path].published, found[B.store_path].is_condemned) == (CREATED + DAY, True)


@pytest.mark.parametrize("turned", [False, True])
def test_of_variants_it_is_the_one_that_clients_get(cache: Cache, *, turned: bool) -> None:
    """Not condemned, then the smallest NarHash, then the newest: in whatever order they are listed."""
    segments = [(variant(1), True, 0), (variant(2), False, 1), (variant(2), False, 3), (variant(3), False, 2)]
    for narinfo, condemned, days in reversed(segments) if turned else segments:
        cache.add(narinfo, condemned=condemned, days=days)
    inventory = cache.inventory()
    hash_part = A.store_path.hash_part
    order = [(entry.narinfo.nar_hash.digest[0], entry.published) for entry in inventory.find(hash_part)]
    assert order == [(2, CREATED + 3 * DAY), (2, CREATED + DAY), (3, CREATED + 2 * DAY), (1, CREATED)]
    (listed,) = inventory.contents().paths
    assert (listed.nar_hash, listed.published) == (str(variant(2).nar_hash), CREATED + 3 * DAY)
    served = inventory.tables.catalog(()).find(hash_part)
    assert served == inventory.find(hash_part)[0].narinfo.render().encode()


@given(
    file_size=st.none() | st.integers(0, 2**63),
    nar_size=st.integers(1, 2**63),
    compression=st.sampled_from(sorted(COMPRESSIONS)),
    deriver=st.none() | st.just(B.store_path.base_name),
    is_signed=st.booleans(),
    extra=st.sampled_from([(), (("System", "x"),), (("NarSizeOfOld", "Sig: x:y"),)]),
    ca=st.sampled_from([None, f"fixed:r:{A.nar_hash}"]),
)
def test_a_glance_tells_what_parsing_tells(
    tmp_path_factory: pytest.TempPathFactory,
    file_size: int | None,
    nar_size: int,
    compression: str,
    deriver: str | None,
    is_signed: bool,
    extra: tuple[tuple[str, str], ...],
    ca: str | None,
) -> None:
    """A list need not validate, but what it says is what the narinfo says."""
    narinfo = replace(
        A,
        file_size=file_size,
        nar_size=nar_size,
        compression=compression,
        deriver=deriver,
        extra=extra,
        ca=ca,
    )
    cache = Cache(IndexFolder(tmp_path_factory.mktemp("index"), "test"), [], {})
    cache.add(signed(narinfo) if is_signed else narinfo)
    inventory = cache.inventory()
    (entry,) = inventory.entries()
    assert inventory.contents().paths == (Listed.of(entry),)
    assert Listed.of(entry).signed_by == (("inventory-1",) if is_signed else ())


@pytest.mark.parametrize(
    "lines",
    [
        ("NarSize: {size}\n", "NarSize: 0{size}\n"),
        ("Compression: none\n", ""),
        ("References: \n", ""),
    ],
)
def test_an_unusual_narinfo_is_read_all_the_same(cache: Cache, lines: tuple[str, str]) -> None:
    """Another writer may order or leave out what Nix does not need."""
    before, after = (line.format(size=A.nar_size) for line in lines)
    cache.add(A, change=lambda text: text.replace(before, after))
    inventory = cache.inventory()
    (listed,) = inventory.contents().paths
    assert listed == Listed.of(inventory.find(A.store_path.hash_part)[0])
    assert listed.nar_size == A.nar_size


def test_what_is_served_to_nobody_is_named(cache: Cache) -> None:
    """A malformed narinfo costs itself alone."""
    tag = cache.add(A, B, change=lambda text: text.replace(f"NarSize: {A.nar_size}\n", "NarSize: x\n", 1))
    (spoilt,) = {A, B} - {entry.narinfo for entry in cache.inventory().entries()}
    contents = cache.inventory().contents()
    assert len(contents.paths) == 1
    assert list(contents.malformed) == [tag]
    assert cache.inventory().find(spoilt.store_path.hash_part) == []
    assert "size" in cache.inventory().malformed(spoilt.store_path.hash_part)[tag]
    whole = A if spoilt == B else B
    assert cache.inventory().malformed(whole.store_path.hash_part) == {}


def test_a_nar_outside_the_cache_is_served_to_nobody(cache: Cache) -> None:
    """As the catalog has it: a registry may not send Nix to any address that it likes."""
    tag = cache.add(replace(A, url="https://elsewhere.example/a.nar"))
    assert list(cache.inventory().entries()) == []
    assert list(cache.inventory().malformed(A.store_path.hash_part)) == [tag]
    assert cache.inventory().tables.catalog(()).find(A.store_path.hash_part) is None


def test_a_version1_cache_has_neither_time_nor_tag(cache: Cache) -> None:
    """Nobody wrote them down; beside segments, it is the oldest."""
    cache.add_version1(A)
    (listed,) = cache.inventory().contents().paths
    assert (listed.published, listed.is_condemned) == (None, False)
    cache.add(A)
    assert [entry.listed_by for entry in cache.inventory().find(A.store_path.hash_part)] == [
        str(cache.segments[0].tag),
        VERSION1,
    ]


def test_roots_are_told_by_their_newest_record(cache: Cache) -> None:
    """By time, wherever the records lie; a scope's root says nothing of another's of the same name."""
    a, b = A.store_path, B.store_path
    newest = PublishRecord("main", "3", CREATED + 2 * DAY, failed=("x",))
    middle = PublishRecord("main", "2", CREATED + DAY, (("x", b), ("x", a)))
    oldest = PublishRecord("main", "1", CREATED, (("x", a),))
    cache.add(records=(newest, middle))
    cache.add(records=(oldest, PublishRecord("other", "1", CREATED, failed=("x",))))
    main, other = cache.inventory().roots()
    assert (main.scope, main.name, main.paths) == ("main", "x", (b, a))
    assert (main.built, main.failed) == (CREATED + DAY, CREATED + 2 * DAY)
    assert (other.scope, other.paths, other.built, other.failed) == ("other", (), None, CREATED)


def test_malformed_records_cost_their_own_table_only(cache: Cache) -> None:
    """People see what can be read, and gc, which may not guess, is told."""
    pin = PinRecord("release", A.store_path, CREATED, "forever")
    cache.add(records=(pin,))
    tag = cache.add(records=(pin,), days=1, change=lambda text: text.replace("forever", "for now"))
    readable, malformed = cache.inventory().readable_records()
    assert readable == [pin]
    assert list(malformed) == [tag]
    with pytest.raises(FormatError, match="for now"):
        list(cache.inventory().records())
