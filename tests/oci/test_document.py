"""The JSON that strangers send, and the JSON that we write."""

import sys

import pytest
from hypothesis import given

from nixcache_oci.errors import FormatError
from nixcache_oci.oci.document import MAX_VALUES, parse_document, render_document
from tests.oci.strategies import extras


@given(extras)
def test_round_trip(document: dict[str, object]) -> None:
    """What was written is read back as it was, and in one spelling only."""
    content = render_document(document, "test")
    assert parse_document(content, "test", len(content)) == document
    assert render_document(dict(reversed(document.items())), "test") == content


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b"7", b'"text"', b'{"a":1} {}', b"{'a':1}", b'{"a":NaN}'),
        *(b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e999}', b'{"a":"\xff"}'),
        *(b'\xef\xbb\xbf{"a":1}', '{"a":1}'.encode("utf-16"), b'{"a":' + b"9" * 5000 + b"}"),
        *(b'{"a":' * 200_000 + b"1" + b"}" * 200_000, b'{"a":' + b"[" * 200_000),
    ],
    ids=lambda content: content[:20],
)
def test_no_document(content: bytes) -> None:
    """Whatever is no finite JSON object in UTF-8 is a format error in one line, never a crash."""
    with pytest.raises(FormatError, match=r"\Atest: [^\n]*\Z") as caught:
        parse_document(content, "test", 2**22)
    assert len(str(caught.value)) < 400


def test_other_threads_get_their_turn_at_each_object() -> None:
    """Within one call of C they would wait for all of an index of thousands, and requests with them."""
    turns = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal turns
        turns += event == "call"

    content = render_document({"list": [{"a": number} for number in range(100)]}, "test")
    sys.setprofile(count)
    try:
        parse_document(content, "test", len(content))
    finally:
        sys.setprofile(None)
    assert turns > 100


def test_limit() -> None:
    """A document over its limit is refused before it is parsed; one at the limit is read."""
    assert parse_document(b'{"a":1}', "test", 7) == {"a": 1}
    with pytest.raises(FormatError, match="8 bytes, over the limit of 7"):
        parse_document(b'{"a":1} ', "test", 7)


def test_values_that_json_cannot_carry() -> None:
    """What no reader could read is not written."""
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    for value in (float("nan"), b"bytes", deep):
        with pytest.raises(FormatError, match="cannot be written"):
            render_document({"a": value}, "test")
    while deep:  # freed from the outside in: Python would recurse
        inner = deep["a"]
        assert isinstance(inner, dict)
        deep = inner


@pytest.mark.parametrize("value", ["{}", "[]", "1", '""'])
def test_the_number_of_values_is_bounded(value: str) -> None:
    """Small values take far more memory than bytes, and reading them keeps all other threads waiting."""
    few, many = (f'{{"a":[{",".join([value] * count)}]}}'.encode() for count in (1000, MAX_VALUES))
    parse_document(few, "test", 2**22)
    with pytest.raises(FormatError, match=r"\Atest: over the limit of 250000 values\Z"):
        parse_document(many, "test", 2**22)
