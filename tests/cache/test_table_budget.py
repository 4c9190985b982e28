"""What tables may take all together."""

from collections.abc import Callable

import pytest

from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.errors import LimitError


@pytest.mark.parametrize(
    ("take", "most", "limit"),
    [
        (lambda budget: budget.receive(40), 2, "100 bytes sent"),
        (lambda budget: budget.inflate(40), 2, "100 bytes"),
        (lambda budget: budget.open(3), 3, "10 entries"),
    ],
)
def test_each_limit_counts_all_tables(take: Callable[[TableBudget], None], most: int, limit: str) -> None:
    """None of them is large. Once one was too much, older ones are not looked at, however small they are."""
    budget = TableBudget(most_bytes=100, most_entries=10)
    for _ in range(most):
        take(budget)
        budget.check()
    with pytest.raises(LimitError, match=f"together are over the limit of {limit}"):
        take(budget)
    with pytest.raises(LimitError, match=limit):
        budget.check()
