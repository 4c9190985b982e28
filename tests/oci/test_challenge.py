"""WWW-Authenticate as servers really send it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.oci.challenge import Challenge, parse_challenges

_SCOPE = "repository:o/n/nix-cache:pull"
_TOKENS = st.text(st.sampled_from("abcxyzABC019-_.!~"), min_size=1, max_size=8)
_VALUES = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            f'Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="{_SCOPE}"',
            [("bearer", {"realm": "https://ghcr.io/token", "service": "ghcr.io", "scope": _SCOPE})],
        ),
        ('bearer Realm="r" , SERVICE=s', [("bearer", {"realm": "r", "service": "s"})]),
        ('Bearer scope="repository:a:pull,push"', [("bearer", {"scope": "repository:a:pull,push"})]),
        (r'Basic realm="say \"hi\", then \\ go"', [("basic", {"realm": r'say "hi", then \ go'})]),
        (
            'Negotiate, Basic realm="a", Bearer realm="b",service="c"',
            [("negotiate", {}), ("basic", {"realm": "a"}), ("bearer", {"realm": "b", "service": "c"})],
        ),
        ('Negotiate dG9rZW4=, Basic realm="a"', [("negotiate", {}), ("basic", {"realm": "a"})]),
        ('Basic realm = "a"', [("basic", {"realm": "a"})]),
        ("Bearer realm=https://r/token", [("bearer", {"realm": "https://r/token"})]),
        ('Basic realm="one", realm="two"', [("basic", {"realm": "one"})]),
        (', ,Basic realm="a",,', [("basic", {"realm": "a"})]),
        ('Basic realm=""', [("basic", {"realm": ""})]),
        ("Basic", [("basic", {})]),
        ("", []),
    ],
)
def test_reads_challenges(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """Commas part challenges and parameters alike; schemes and names have no case; quotes protect."""
    assert parse_challenges([header]) == tuple(Challenge(*pair) for pair in expected)


def test_takes_several_headers_in_order() -> None:
    """A server may send one header for each challenge; a parameter never crosses to another header."""
    assert parse_challenges(['Bearer realm="b"', 'service="x"', 'Basic realm="a"']) == (
        Challenge("bearer", {"realm": "b"}),
        Challenge("basic", {"realm": "a"}),
    )


@pytest.mark.parametrize(
    ("header", "schemes"),
    [
        ('Bearer realm="open, service="x"', []),
        ('??? realm="evil", Basic realm="a"', ["basic"]),
        ('Bearer realm="a", Odd (thing), realm="evil", Basic realm="b"', ["bearer", "basic"]),
    ],
)
def test_skips_what_it_cannot_read(header: str, schemes: list[str]) -> None:
    """A piece that breaks the grammar is left out, and its parameters reach no other challenge."""
    challenges = parse_challenges([header])
    assert [challenge.scheme for challenge in challenges] == schemes
    assert all("evil" not in challenge.parameters.values() for challenge in challenges)


@given(
    st.lists(
        st.tuples(
            _TOKENS,
            st.dictionaries(_TOKENS.map(str.lower), _VALUES, max_size=4),
            st.sampled_from([",", " , "]),
        ),
        max_size=4,
    )
)
def test_reads_what_was_rendered(challenges: list[tuple[str, dict[str, str], str]]) -> None:
    """Whatever values a challenge carries, quoting and reading give them back."""
    header = ", ".join(_render(*challenge) for challenge in challenges)
    assert parse_challenges([header]) == tuple(
        Challenge(scheme.lower(), pairs) for scheme, pairs, _ in challenges
    )


def _render(scheme: str, parameters: dict[str, str], comma: str) -> str:
    quoted = (
        name + '="' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for name, value in parameters.items()
    )
    return f"{scheme} {comma.join(quoted)}".strip()
