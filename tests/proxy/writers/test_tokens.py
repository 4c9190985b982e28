"""The file of tokens."""

import pytest

from nixcache_oci.errors import FormatError
from nixcache_oci.proxy.writers.tokens import find_name, parse_tokens

A, B = "a" * 16, "b" * 16


def test_lines_are_read() -> None:
    """Comments, blank lines and spaces around a line are nobody's."""
    tokens = parse_tokens(f"# who\n\n  laptop:{A} \r\nci@host:{B}:with-colon\n")
    assert tokens == {"laptop": A.encode(), "ci@host": f"{B}:with-colon".encode()}


@pytest.mark.parametrize(
    "text", ["", "# none\n", f"laptop {A}", f":{A}", "laptop:short", f"a:{A}\na:{B}", f"a:{A} {B}", f"ä:{A}"]
)
def test_a_line_that_is_none_is_an_error(text: str) -> None:
    """A token with a slip would let nobody in, and nobody would know why; the error shows none."""
    with pytest.raises(FormatError) as caught:
        parse_tokens(text)
    assert A not in str(caught.value)
    assert B not in str(caught.value)


def test_a_token_names_its_writer() -> None:
    """The whole token, and no part of it."""
    tokens = parse_tokens(f"one:{A}\ntwo:{B}")
    assert find_name(tokens, B.encode()) == "two"
    for wrong in (b"", A[:-1].encode(), f"{A}a".encode(), b"\xff"):
        assert find_name(tokens, wrong) is None
