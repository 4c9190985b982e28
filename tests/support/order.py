"""The order of tests: files that take longest come first, so that processes that share them end together."""

from pathlib import Path
from typing import Final

import pytest

_TESTS: Final = Path(__file__).parents[1]
_LONGEST: Final = (
    "reliability/test_fault_matrix.py",
    "publisher/test_upload_trouble.py",
    "workflows",
    "journey",
    "hostile",
    "reliability",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file alone: what its tests share is made once."""
    ranks = {_TESTS / name: rank for rank, name in enumerate(_LONGEST)}

    def rank_of(item: pytest.Item) -> int:
        return min(
            (ranks[path] for path in (item.path, *item.path.parents) if path in ranks), default=len(ranks)
        )

    items.sort(key=rank_of)
