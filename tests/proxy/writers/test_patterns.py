"""Patterns: a star ends where a part of the name does."""

import pytest

from nixcache_oci.errors import FormatError
from nixcache_oci.proxy.writers.patterns import CLAIM_SEPARATORS, SUBJECT_SEPARATORS, Pattern


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("main", "main", True),
        ("main", "main2", False),
        ("main", "Main", False),
        ("main", "main\n", False),
        ("refs/heads/*", "refs/heads/a/b", True),
        ("refs/heads/*", "refs/heads/", True),
        ("refs/heads/*", "refs/tags/a", False),
        ("*.x*y", "a.xby", True),
        ("*.x*y", "a.x.xyy", True),
        ("*.x*y", "a.xb", False),
        ("a*a", "a", False),
        ("a**b", "axb", True),
        ("v[0-9]", "v1", False),
        ("v?", "v1", False),
        ("repo:octo/*:ref:refs/heads/main", "repo:octo/x:ref:refs/heads/main", True),
        ("repo:octo/*:ref:refs/heads/main", "repo:octo/x:environment:a:ref:refs/heads/main", False),
        ("o/r/*@refs/heads/main", "o/r/w.yml@refs/heads/x@refs/heads/main", False),
        ("*", "", True),
        ("*", "x" * 1001, False),
    ],
)
def test_claims(pattern: str, name: str, matches: bool) -> None:
    """Nothing but the star is special, and what a stranger may name cannot end its own part."""
    assert Pattern.parse(pattern, CLAIM_SEPARATORS).matches(name) is matches


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("CN=builder-*", "CN=builder-01", True),
        ("CN=builder-*", "CN=builder-01,O=Other", False),
        ("CN=builder-*", "CN=builder-01+OU=x", False),
        ("CN=builder-*,O=Example", "CN=builder-a b,O=Example", True),
        ("CN=builder-*", "O=x,CN=builder-01", False),
    ],
)
def test_subjects(pattern: str, name: str, matches: bool) -> None:
    """The whole subject is meant."""
    assert Pattern.parse(pattern, SUBJECT_SEPARATORS).matches(name) is matches


@pytest.mark.parametrize("text", ["", "x" * 1001])
def test_what_is_no_pattern(text: str) -> None:
    """It would match nothing."""
    with pytest.raises(FormatError):
        Pattern.parse(text, CLAIM_SEPARATORS)


def test_no_name_makes_the_search_slow() -> None:
    """One that tried every place for every star would take years."""
    assert not Pattern.parse("*a" * 400 + "b", CLAIM_SEPARATORS).matches("a" * 1000)
