"""The page's table of bounds is the code's: its numbers, and tests that exist."""

import pytest

from tests.reliability.bounds import BOUNDS, Bound, render_bounds
from tests.reliability.time_limits import render_time_limits
from tests.support.named_tests import TOP, is_test, named_tests


def test_the_page_shows_it() -> None:
    """A bound that changes in the code changes on the page, or this fails; a time limit likewise."""
    page = (TOP / "docs/reliability.md").read_text()
    assert render_bounds() in page
    assert render_time_limits() in page


@pytest.mark.parametrize(
    "bound", [bound for side in BOUNDS.values() for bound in side], ids=lambda one: one.what
)
def test_each_bound_has_a_test(bound: Bound) -> None:
    """A number that nothing holds is a wish."""
    [(file, function)] = named_tests(f"`{bound.test}`")
    assert is_test(file, function), bound.test
