"""Tests that a page names as what holds its sentences: ``tests/proxy/test_x.py::test_y``."""

import re
from pathlib import Path
from typing import Final

TOP: Final = Path(__file__).parent.parent.parent

_NODE = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")


def named_tests(text: str) -> list[tuple[str, str]]:
    """Find the tests that a text names: file and function."""
    return _NODE.findall(text)


def is_test(file: str, function: str) -> bool:
    """Tell whether there is such a test."""
    path = TOP / file
    definition = re.compile(rf"^(?:async )?def {function}\(", re.MULTILINE)
    return path.is_file() and definition.search(path.read_text()) is not None
