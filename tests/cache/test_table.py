"""Tables: the text that lists what a segment holds."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixcache_oci.cache import table_search
from nixcache_oci.cache.record import PublishRecord, UnknownRecord
from nixcache_oci.cache.table import (
    MAX_HEADER_BYTES,
    MAX_TABLE_BYTES,
    Table,
    TableHeader,
    parse_head,
    parse_header,
    parse_narinfos,
    parse_table,
    render_table,
)
from nixcache_oci.cache.table_search import (
    MAX_STANZA_BYTES,
    HashPartBytes,
    find_hash_part,
    row_key,
    scan,
    stanza_around,
)
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from tests.support.objects import hash_part_of, store_object

TIME = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)
HEADER = TableHeader(TIME, "https://github.com/owner/name/commit/abc", ("my-cache-1:AAAA",))


def narinfo_of(seed: str) -> NarInfo:
    return store_object(seed).narinfo


def find(content: bytes, hash_part: HashPart) -> bytes | None:
    found, wanted = scan(content), HashPartBytes(hash_part.encode())
    row = find_hash_part(content, found.keys, found.positions, wanted, row_key(wanted))
    return None if row is None else stanza_around(content, found.positions[row])


def test_the_written_form() -> None:
    """Header, records, narinfos; each stanza separated from the next by one empty line."""
    record = PublishRecord("main", "1", TIME)
    narinfo = narinfo_of("one")
    assert (
        render_table(Table(HEADER, (record,), (narinfo,))).decode()
        == (
            "Nixcache-Table: 2\n"
            "Created: 2026-11-21T03:15:00Z\n"
            "Source: https://github.com/owner/name/commit/abc\n"
            "Public-Key: my-cache-1:AAAA\n"
            "\n"
            "Publish: main 1 2026-11-21T03:15:00Z\n"
            "\n"
        )
        + narinfo.render()
    )


@given(st.sets(st.integers(0, 10_000), max_size=30), st.integers(0, 10_000))
def test_every_narinfo_is_found_exactly_as_it_was_rendered(numbers: set[int], other: int) -> None:
    """What a look-up gives is what the publisher signed; and nothing is found that is not there."""
    narinfos = [narinfo_of(str(number)) for number in numbers]
    content = render_table(Table(HEADER, (), tuple(narinfos)))
    for narinfo in narinfos:
        assert find(content, narinfo.store_path.hash_part) == narinfo.render().encode()
    if other not in numbers:
        assert find(content, hash_part_of(str(other))) is None


@given(st.sets(st.integers(0, 10_000), max_size=10))
@settings(max_examples=30)
def test_what_is_written_is_read_again(numbers: set[int]) -> None:
    """gc rewrites tables: nothing may change on the way."""
    narinfos = sorted(
        (narinfo_of(str(number)) for number in numbers), key=lambda one: one.store_path.hash_part
    )
    records = (PublishRecord("main", "1", TIME), UnknownRecord((("Later", "kind"), ("More", "of it"))))
    header = replace(HEADER, extra=(("Later-Field", "value"),))
    table = Table(header, records, tuple(narinfos))
    assert parse_table(render_table(table)) == table
    assert parse_head(render_table(table)) == replace(table, narinfos=())


def test_hash_parts_that_share_their_first_letters_are_kept_apart() -> None:
    """The keys hold twelve letters only: the rest is compared in the text."""
    base = narinfo_of("x")
    parts = [HashPart("0123456789ab" + letter * 20) for letter in "0z"]
    narinfos = [replace(base, store_path=replace(base.store_path, hash_part=part)) for part in parts]
    content = render_table(Table(HEADER, (), tuple(narinfos)))
    for narinfo in narinfos:
        assert find(content, narinfo.store_path.hash_part) == narinfo.render().encode()
    assert find(content, HashPart("0123456789ab" + "1" * 20)) is None


def test_another_store_dir_is_no_obstacle() -> None:
    """Tests and some users have their store elsewhere, however deep."""
    base = narinfo_of("x")
    narinfo = replace(base, store_path=replace(base.store_path, store_dir="/home/a b/nix-store/deep"))
    content = render_table(Table(HEADER, (), (narinfo,)))
    assert find(content, narinfo.store_path.hash_part) == narinfo.render().encode()


def test_a_record_cannot_pose_as_a_narinfo() -> None:
    """Only a stanza that begins with StorePath is one."""
    path = narinfo_of("x").store_path
    record = UnknownRecord((("Later", "kind"), ("StorePath", str(path))))
    content = render_table(Table(HEADER, (record,), ()))
    assert find(content, path.hash_part) is None


@pytest.mark.parametrize("store_dir", ["/a/StorePath: /b", "/" + "x" * 4000])
def test_an_odd_store_dir_is_no_obstacle(store_dir: str) -> None:
    """Only an empty line and StorePath begin a narinfo, and not the same words in the middle of a line."""
    base = narinfo_of("x")
    narinfo = replace(base, store_path=replace(base.store_path, store_dir=store_dir))
    content = render_table(Table(HEADER, (), (narinfo,)))
    assert find(content, narinfo.store_path.hash_part) == narinfo.render().encode()


def test_letters_outside_nix32_hide_nothing() -> None:
    """Nobody can ask for such a path; those beside it are found all the same."""
    narinfos = sorted(map(narinfo_of, "abcdef"), key=lambda one: one.store_path.hash_part)
    head = render_table(Table(HEADER)).decode()
    stanzas = [narinfo.render() for narinfo in narinfos]
    part = narinfos[2].store_path.hash_part
    stanzas[2] = stanzas[2].replace(part, part[:2] + "eotu" * 2 + part[10:])
    content = "\n".join([head, *stanzas]).encode()
    assert find(content, part) is None
    for narinfo in narinfos[:2] + narinfos[3:]:
        assert find(content, narinfo.store_path.hash_part) == narinfo.render().encode()


def test_a_record_cannot_begin_as_a_narinfo() -> None:
    """Whoever makes records of an unknown kind could forge a narinfo so."""
    with pytest.raises(FormatError, match="StorePath"):
        render_table(Table(HEADER, (UnknownRecord((("StorePath", str(narinfo_of("x").store_path)),)),)))


def test_a_stanza_has_a_limit() -> None:
    """No writer writes a longer one, and no reader copies it into memory to find that out."""
    small = narinfo_of("x")
    with pytest.raises(FormatError, match="limit"):
        render_table(Table(HEADER, (), (replace(small, extra=(("Filler", "x" * MAX_STANZA_BYTES),)),)))
    filler = MAX_STANZA_BYTES - len(small.render()) - len("Filler: \n")
    for size, is_served in ((filler, True), (filler + 1, False)):
        large = small.render() + f"Filler: {'x' * size}\n"
        for rest in ("", f"\n{narinfo_of('x').render()}"):
            content = f"{render_table(Table(HEADER)).decode()}\n{large}{rest}".encode()
            found = stanza_around(content, content.index(small.store_path.hash_part.encode()))
            assert found == (large.encode() if is_served else b"")


def test_a_malformed_record_does_not_hide_the_narinfos() -> None:
    """It is gc that must not guess; who only serves narinfos reads the header alone."""
    narinfo = narinfo_of("x")
    content = render_table(Table(HEADER, (), (narinfo,)))
    content = content.replace(b"\n\n", b"\n\nPublish: nonsense\n\n", 1)
    with pytest.raises(FormatError):
        parse_head(content)
    assert parse_header(content) == HEADER
    assert find(content, narinfo.store_path.hash_part) == narinfo.render().encode()


def test_a_head_of_any_size_is_read_alone() -> None:
    """Behind the first narinfo nothing is looked at: it may be 64 MiB long, and anything."""
    content = render_table(Table(HEADER, (PublishRecord("main", "1", TIME),), (narinfo_of("x"),)))
    assert parse_head(content + b"\xff no stanza") == parse_head(content)


@pytest.mark.parametrize("gap", ["\n\n\n", "\n\n\n\n"])
def test_one_empty_line_parts_two_stanzas(gap: str) -> None:
    """A rewrite gives the same bytes, or refuses."""
    content = render_table(Table(HEADER, (PublishRecord("main", "1", TIME),), (narinfo_of("x"),))).decode()
    parts = [content.replace(f"\n\n{kind}", f"{gap}{kind}") for kind in ("Publish", "StorePath")]
    for changed in (*parts, content + "\n"):
        with pytest.raises(FormatError):
            parse_table(changed.encode())


@pytest.mark.parametrize("value", ["a\nb", "\ud800", "a\n\nStorePath: /nix/store/x", "a\rb", "a\0b"])
def test_no_value_can_forge_a_stanza(value: str) -> None:
    """A line break inside a value would."""
    with pytest.raises(FormatError):
        render_table(Table(replace(HEADER, source=value)))


def test_nothing_is_listed_twice() -> None:
    """Which of the two would be served?"""
    narinfo = narinfo_of("x")
    with pytest.raises(FormatError, match="twice"):
        render_table(Table(HEADER, (), (narinfo, narinfo)))


def test_the_order_is_checked() -> None:
    """A binary search in a table that is out of order would miss what is there."""
    one, other = sorted((narinfo_of("1"), narinfo_of("2")), key=lambda each: each.store_path.hash_part)
    head = render_table(Table(HEADER)).decode()
    content = f"{head}\n{other.render()}\n{one.render()}".encode()
    with pytest.raises(FormatError, match="order"):
        scan(content)
    with pytest.raises(FormatError, match="order"):
        parse_table(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"Nixcache-Table: 3\nCreated: 2026-11-21T03:15:00Z\n",
        b"Nixcache-Table: 2\n",
        b"Nixcache-Table: 2\nCreated: today\n",
        b"Created: 2026-11-21T03:15:00Z\nNixcache-Table: 2\n",
        b"Nixcache-Table: 2\r\nCreated: 2026-11-21T03:15:00Z\r\n",
        b"Nixcache-Table: 2\nCreated: 2026-11-21T03:15:00Z",
        b"Nixcache-Table: 2\nCreated: 2026-11-21T03:15:00Z\n\nno record\n",
        b"Nixcache-Table: 2\nCreated: 2026-11-21T03:15:00Z\nSource: \xff\n",
        b"Nixcache-Table: 2\nCreated: 2026-11-21T03:15:00Z\nLater: \x00\n",
        b"StorePath: /nix/store/x\n",
    ],
)
def test_malformed_heads_are_refused(content: bytes) -> None:
    """A reader keeps the table that it had."""
    with pytest.raises(FormatError):
        parse_head(content)


def test_the_limit_holds() -> None:
    """A publisher must not write what every reader refuses."""
    narinfo = replace(narinfo_of("x"), extra=(("Filler", "x" * 1000),))
    with pytest.raises(FormatError, match="limit"):
        render_table(Table(HEADER, (), (narinfo,)), limit=1000)
    assert MAX_TABLE_BYTES == 64 * 1024 * 1024


def test_a_stanza_that_nobody_serves_is_no_narinfo() -> None:
    """A record behind the narinfos is lost to readers of heads: whoever counts on a table refuses it."""
    narinfo = store_object("x").narinfo
    text = render_table(Table(HEADER, (), (narinfo,)))
    assert list(parse_narinfos(text)) == [narinfo]
    with pytest.raises(FormatError, match="does not begin with its StorePath"):
        list(parse_narinfos(text + b"\nPublish: main 1 2026-11-21T03:15:00Z\n"))
    assert list(parse_narinfos(render_table(Table(HEADER)))) == []


def test_a_header_has_a_limit_of_its_own() -> None:
    """Every reader parses the header of every table, and keeps what it needs of it."""
    fields = tuple((f"X-{number}", "x" * 80) for number in range(MAX_HEADER_BYTES // 100))
    header = replace(HEADER, extra=fields)
    assert parse_header(render_table(Table(header))) == header
    large = replace(HEADER, extra=(*fields, *fields))
    with pytest.raises(FormatError, match="header is over the limit"):
        render_table(Table(large))
    content = render_table(Table(HEADER)) + b"X: x\n" * MAX_HEADER_BYTES
    for parse in (parse_header, parse_head):
        with pytest.raises(FormatError, match="header is over the limit"):
            parse(content)


@pytest.mark.parametrize("searched", [4300, 5000, 9999])
def test_a_narinfo_is_found_wherever_a_search_ends(searched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is searched in parts: one search of all of it would keep all other threads waiting."""
    monkeypatch.setattr(table_search, "_SEARCHED_BYTES", searched)
    narinfos = [narinfo_of(str(number)) for number in range(100)]
    odd = replace(narinfos[0].store_path, store_dir="/" + "d" * 4090)
    narinfos[0] = replace(narinfos[0], store_path=odd)
    for padding in range(0, 600, 37):
        content = render_table(Table(replace(HEADER, source="x" * padding), (), tuple(narinfos)))
        assert len(scan(content).keys) == 100
        assert len(scan(content[: content.rindex(b"StorePath")]).keys) == 99
