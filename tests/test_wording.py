"""How what the program and its documents say reads: numbers with their nouns, and the terms of the field."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import nixcache_oci
from nixcache_oci.wording import counted, format_duration, format_share, format_size

PACKAGE = Path(nixcache_oci.__file__).parent
TOP = Path(__file__).parent.parent
PAGES = [TOP / "README.md", TOP / "CONTRIBUTING.md", *TOP.glob("docs/*.md"), *TOP.glob("workflows/*.md")]

# What reviewers read twice, and what an engineer writes instead.
_NOT_ENGLISH = {
    r"parted by": "separated by",
    r"could not be had": "could not be read, or failed",
    r"as it should be": "unchanged",
    r"(they|clients|upstreams) have not[.,;:]": "they lack",
    r"tells no": "has no recorded",
    r"needs nobody": "nobody needs",
    r"(goes|comes) (on|in) where it stopped": "resumes",
    r"run the same command again, it": "run the same command again to",
    r"take\b.*\bcache in, as it is": "bring in a cache, unchanged",
    r"one a (line|core)": "one per line",
}

_PLURAL = re.compile(
    r" (\w+ )?(paths|problems|segments|blobs|roots|pins|manifests|bytes|tags|records|layers|lines|letters"
    r"|characters|pages|entries|tables|values|keys|outputs|signatures|upstreams|references|narinfos"
    r"|warnings|versions|attributes|redirects|backups|days|hours|minutes|seconds)\b"
)
# What is over a limit, or up to one, is never one: these are constants, or get one.
_LIMITS = frozenset({"limit", "self.limit", "most_bytes"})


@pytest.mark.parametrize(("number", "text"), [(0, "0 paths"), (1, "1 path"), (2, "2 paths")])
def test_one_is_no_plural(number: int, text: str) -> None:
    """Every count is written by this."""
    assert counted(number, "path") == text
    assert counted(number, "entry", "entries") == text.replace("paths", "entries").replace("path", "entry")


def find_plurals(code: str) -> Iterator[str]:
    """Find values that are followed by a plural, in text that is put together."""
    for text in ast.walk(ast.parse(code)):
        if isinstance(text, ast.JoinedStr):
            for value, behind in zip(text.values, text.values[1:], strict=False):
                if not isinstance(value, ast.FormattedValue) or not isinstance(behind, ast.Constant):
                    continue
                name = ast.unparse(value.value)
                found = _PLURAL.match(str(behind.value))
                if found and name not in _LIMITS and not name.isupper():
                    yield f"{name}{found[0]}"


def test_what_is_found() -> None:
    """A number that is put before a plural by hand, and no limit."""
    code = "f'{n} paths, {counted(n)}: over {_MOST} bytes, {len(x)} bad tags'"
    assert list(find_plurals(code)) == ["n paths", "len(x) bad tags"]


def test_no_line_has_a_plural_of_its_own() -> None:
    """``1 paths`` comes of writing the number and the noun by hand."""
    found = {
        path.relative_to(PACKAGE).as_posix(): plurals
        for path in PACKAGE.rglob("*.py")
        if (plurals := list(find_plurals(path.read_text())))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (35_756_442, "34.1 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**5, "3072.0 TiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    """One digit behind the point, never 1024 of a unit that has a larger one."""
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (59.96, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.7, "1 h 0 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Two units at most, and never sixty of one."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (35_756_442, 126_353_408, "34.1 of 120.5 MiB"),
        (3, 512, "3 of 512 B"),
        (512, 5 * 1024**3, "0.0 of 5.0 GiB"),
        (1024 * 1024 - 1, 1024 * 1024 - 1, "1.0 of 1.0 MiB"),
    ],
)
def test_shares(part: int, whole: int, text: str) -> None:
    """Both are told in one unit, so that they can be compared at a glance."""
    assert format_share(part, whole) == text


def find_odd_phrases(text: str) -> list[str]:
    """Find them however the text is wrapped, each with what to write instead."""
    flat = " ".join(text.split())
    return [
        f"{found[0]}: write {better}"
        for phrase, better in _NOT_ENGLISH.items()
        if (found := re.search(rf"\b(?:{phrase})", flat, re.IGNORECASE))
    ]


def test_odd_phrases_are_found() -> None:
    """Across the end of a line as well; and each is told with what to write."""
    assert find_odd_phrases("keys, parted\n  by spaces") == ["parted by: write separated by"]
    assert find_odd_phrases("keys, separated by spaces") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documents_read_like_an_engineers(page: Path) -> None:
    """The terms are those that readers know, in each sentence that is there to be read once."""
    assert find_odd_phrases(page.read_text()) == []


def test_help_and_errors_read_like_an_engineers() -> None:
    """As documents: help, errors and logs are literals of the package."""
    found = {
        path.relative_to(PACKAGE).as_posix(): odd
        for path in PACKAGE.rglob("*.py")
        for text in ast.walk(ast.parse(path.read_text()))
        if isinstance(text, ast.Constant) and isinstance(text.value, str)
        if (odd := find_odd_phrases(text.value))
    }
    assert found == {}
