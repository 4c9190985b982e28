"""Range requests: one range is served, anything else is the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.proxy.relay import ByteRange, UnsatisfiableRangeError, parse_range

SIZE = 100


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-", 0, 100),
        ("bytes=99-", 99, 100),
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10-1000", 10, 100),
        ("bytes=-1", 99, 100),
        ("bytes=-1000", 0, 100),
        ("BYTES=5-6", 5, 7),
        ("bytes = 5 - 6", 5, 7),
    ],
)
def test_one_range_is_served(header: str, start: int, end: int) -> None:
    """First, last and suffix forms, with what lies behind the end cut off."""
    assert parse_range(header, SIZE) == ByteRange(start, end, SIZE)


@pytest.mark.parametrize(
    "header",
    [
        None,
        *("", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-4", "bytes=0-1,3-4", "bytes=٣-٤"),
        *("bytes=+1-2", "bytes=1_0-", "lines=0-1", "bytes=0-1\n", f"bytes=0-{'9' * 30}"),
    ],
)
def test_anything_else_is_the_whole(header: str | None) -> None:
    """A header that is malformed, or asks for more than one range, is ignored, as RFC 9110 allows."""
    assert parse_range(header, SIZE) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", f"bytes={'9' * 18}-"])
def test_bytes_that_are_not_there(header: str) -> None:
    """416, with the size, so that the client knows."""
    with pytest.raises(UnsatisfiableRangeError) as refusal:
        parse_range(header, SIZE)
    assert refusal.value.size == SIZE


@given(
    st.integers(0, 300),
    st.none() | st.integers(0, 400),
    st.none() | st.integers(0, 400),
)
def test_it_is_what_slicing_gives(size: int, first: int | None, last: int | None) -> None:
    """RFC 9110, 14.1.2: ``first-last``, ``first-`` and ``-length``, against Python's own slices."""
    whole = list(range(size))
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    if first is not None and last is not None and last < first:
        wanted = whole  # malformed: ignored
    elif first is not None:
        wanted = whole[first : None if last is None else last + 1]
    else:
        wanted = whole[max(0, size - last) :] if last is not None else whole
    try:
        part = parse_range(header, size) or ByteRange.whole(size)
    except UnsatisfiableRangeError:
        assert wanted == []
    else:
        assert whole[part.start : part.end] == wanted
        assert part.is_whole == (wanted == whole)
