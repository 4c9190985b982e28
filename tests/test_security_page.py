"""SECURITY.md promises nothing that nobody holds: each sentence names its test, or says that it has none."""

import re
from collections.abc import Iterator

from tests.support.named_tests import TOP, is_test, named_tests

PAGE = TOP / "SECURITY.md"
HELD_BY = "held by"
NO_TEST = re.compile(r"no test: \S.*")


def rows() -> Iterator[tuple[str, str]]:
    """The page's sentences, and what holds each: every row of a table whose last column is ``held by``."""
    is_held = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            is_held = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if cells[-1] == HELD_BY:
            is_held = True
        elif is_held and not set(line) <= set("|-: "):
            yield " | ".join(cells[:-1]), cells[-1]


def test_each_sentence_is_held_by_a_test_or_says_that_none_does() -> None:
    """A page about trust that nobody checks is fiction."""
    found = list(rows())
    assert len(found) > 40
    for sentence, held_by in found:
        tests = named_tests(held_by)
        assert tests or NO_TEST.fullmatch(held_by), f"no test is named: {sentence}"
        for file, function in tests:
            assert is_test(file, function), f"{file}::{function} does not exist: {sentence}"


def test_what_is_said_beside_the_tables_promises_nothing() -> None:
    """Prose introduces the tables; what it would promise belongs into one of them."""
    prose = [
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(("|", "#"))
    ]
    assert len(prose) < 30, "\n".join(prose)
