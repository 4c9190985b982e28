"""JSON read piece by piece: the same values as ``json`` gives, and no more at a time."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cache import json_stream
from nixcache_oci.cache.json_stream import MAX_VALUE_CHARACTERS, JsonStream
from nixcache_oci.errors import FormatError

# Escapes, and letters of one to four bytes, so that windows end in the middle of each.
texts = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n/{}[],: é€🙂'))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture(params=[1, 7, 256 * 1024])
def window(request: pytest.FixtureRequest) -> Iterator[int]:
    """Bytes that are taken at a time; a window grows by as much as it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_WINDOW_BYTES", request.param)
        yield request.param


@pytest.mark.usefixtures("window")
@given(st.dictionaries(texts, values, max_size=5), st.sampled_from([None, 1]), st.booleans(), st.sets(texts))
def test_what_is_read_is_what_is_there(
    document: dict[str, object], indent: int | None, ascii_only: bool, skipped: set[str]
) -> None:
    """Whatever is read as a value, member by member or skipped, and wherever a window ends."""
    content = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    stream = JsonStream(content, "test")
    found: dict[str, object] = {}
    for name in stream.members():
        if name in skipped:
            stream.skip()
        elif stream.is_at("["):
            found[name] = [stream.value() for _ in stream.elements()]
        else:
            found[name] = stream.value()
    stream.end()
    assert found == {name: value for name, value in document.items() if name not in skipped}


def read(content: bytes, *, is_skipped: bool) -> None:
    stream = JsonStream(content, "test")
    for _ in stream.members():
        if is_skipped:
            stream.skip()
        else:
            stream.value()
    stream.end()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":}',
        b'{"a":1',
        b'{"a":1,}',
        b'{"a":1}x',
        b'{"a":1 "b":2}',
        b"{1:2}",
        b'{"a":"',
        b'{"a":"\\',
        b'{"a":[1,2',
        b'{"a":\xff}',
        b'{"a":"\xc3',
        b'{"a":' + b"[" * 100_000,
        '{"a":1}'.encode("utf-16"),
    ],
)
@pytest.mark.parametrize("is_skipped", [True, False])
def test_what_is_malformed_is_an_error(content: bytes, *, is_skipped: bool) -> None:
    """In one line, and never an endless search."""
    with pytest.raises(FormatError, match=r"\Atest: not JSON: [^\n]{1,300}\Z"):
        read(content, is_skipped=is_skipped)


def test_a_large_value_is_passed_over() -> None:
    """The next one is read all the same."""
    for large in ('"' + "\\u00fc" * MAX_VALUE_CHARACTERS + '"', "[" + "1," * MAX_VALUE_CHARACTERS + "1]"):
        stream = JsonStream(f'{{"a":{large},"b":2}}'.encode(), "test")
        found = {name: stream.value() for name in stream.members()}
        assert found == {"a": f"over {MAX_VALUE_CHARACTERS} letters", "b": 2}


def test_what_is_passed_over_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of brackets would take a minute, at each look."""
    monkeypatch.setattr(json_stream, "_MAX_MARKS", 1000)
    with pytest.raises(FormatError, match="over 1000 values are passed over"):
        read(b'{"a":[' + b"[]," * 1000 + b"[]]}", is_skipped=True)
