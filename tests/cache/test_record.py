"""Records: what a publish, a pin or an unpin left in a table."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache.record import (
    PinRecord,
    PublishRecord,
    Record,
    UnknownRecord,
    UnpinRecord,
    parse_record,
    record_fields,
)
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import StorePath
from tests.support.objects import hash_part_of

PATH = StorePath("/nix/store", hash_part_of("hello"), "hello-2.12")
TIME = datetime(2026, 11, 21, 3, 15, tzinfo=UTC)

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1)
times = st.datetimes(
    min_value=datetime(1970, 1, 1),
    max_value=datetime(9999, 12, 31),
    timezones=st.just(UTC),  # hypothesis adds the zone
).map(lambda time: time.replace(microsecond=0))
paths = st.builds(
    lambda seed, name: StorePath("/nix/store", hash_part_of(str(seed)), name),
    st.integers(),
    st.from_regex(r"[a-z][a-z0-9.-]{0,20}", fullmatch=True),
)
root_names = st.lists(words, min_size=1, max_size=3).map(" ".join)
records = st.one_of(
    st.builds(
        PublishRecord,
        words,
        words,
        times,
        st.lists(st.tuples(root_names, paths)).map(tuple),
        st.lists(root_names).map(tuple),
        st.booleans(),
        st.lists(st.tuples(st.just("Later-Field"), words)).map(tuple),
    ),
    st.builds(
        PinRecord,
        words,
        paths,
        times,
        st.sampled_from(["forever", "for 5 revisions", "until 2027-01-01T00:00:00Z"]),
    ),
    st.builds(UnpinRecord, words, times),
    st.builds(UnknownRecord, st.just((("Later-Kind", "value"), ("Field", "value")))),
)


@given(records)
def test_what_is_written_is_read_again(record: Record) -> None:
    """No record changes when a table is rewritten, unknown kinds and fields included."""
    assert parse_record(tuple(record_fields(record))) == record


def test_the_written_form() -> None:
    """The format's own example, to the letter."""
    record = PublishRecord(
        "main-x86_64-linux", "8412373217", TIME, (("packages.x86_64-linux.default", PATH),), ("web2",), True
    )
    assert record_fields(record) == (
        ("Publish", "main-x86_64-linux 8412373217 2026-11-21T03:15:00Z"),
        ("Root", f"packages.x86_64-linux.default {PATH}"),
        ("Failed", "web2"),
        ("Partial", "yes"),
    )


@pytest.mark.parametrize(
    "fields",
    [
        (("Publish", "scope run"),),
        (("Publish", "scope run yesterday"),),
        (("Publish", "scope run 2026-11-21T03:15:00Z"), ("Root", str(PATH))),
        (("Publish", "scope run 2026-11-21T03:15:00Z"), ("Root", "name /nix/store/nonsense")),
        (("Pin", f"name {PATH} 2026-11-21T03:15:00Z"),),
        (("Pin", f"name {PATH} 2026-11-21T03:15:00Z for 0 revisions"),),
        (("Pin", f"name {PATH} 2026-11-21T03:15:00Z until tomorrow"),),
        (("Unpin", "name"),),
    ],
)
def test_malformed_records_are_refused_when_read(fields: tuple[tuple[str, str], ...]) -> None:
    """gc must not guess what a record meant: it would delete by the guess."""
    with pytest.raises(FormatError):
        parse_record(fields)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PublishRecord("", "run", TIME),
        lambda: PublishRecord("two words", "run", TIME),
        lambda: PublishRecord("scope", "two words", TIME),
        lambda: PublishRecord("scope", "run", TIME, (("", PATH),)),
        lambda: PublishRecord("scope", "run", TIME, failed=("",)),
        lambda: PublishRecord("scope", "run", TIME, (("a\x1bb", PATH),)),
        lambda: PublishRecord("scope", "run", TIME, failed=("a\nRoot: b",)),
        lambda: PublishRecord("sco\x7fpe", "run", TIME),
        lambda: PinRecord("na\tme", PATH, TIME, "forever"),
        lambda: PinRecord("two words", PATH, TIME, "forever"),
        lambda: PinRecord("name", PATH, TIME, "for a while"),
        lambda: UnpinRecord("", TIME),
        lambda: UnknownRecord(()),
        lambda: UnknownRecord((("Pin", "something else"),)),
    ],
)
def test_what_could_not_be_read_cannot_be_made(make: Callable[[], Record]) -> None:
    """A publisher must notice, and not gc weeks later."""
    with pytest.raises(FormatError):
        make()
