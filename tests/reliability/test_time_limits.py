"""The table of time limits says what the code has."""

from pathlib import Path

import pytest

import nixcache_oci
from tests.reliability.time_limits import TIME_LIMITS, TimeLimit

_PACKAGE = Path(nixcache_oci.__file__).parent


@pytest.mark.parametrize("limit", TIME_LIMITS, ids=lambda limit: limit.what)
def test_each_limit_stands_where_the_table_says(limit: TimeLimit) -> None:
    """A limit that is changed or moved is changed in the table, too."""
    lines = (_PACKAGE / limit.module).read_text().splitlines()
    found = [line for line in lines if limit.name in line and "=" in line]
    assert found, f"{limit.module} has no {limit.name}"
    if not limit.name.startswith(("_BLOB", "_DOCUMENT")):  # these count in units of another limit
        number = limit.seconds.partition(",")[0].partition(" ")[0]
        assert any(f"= {number}" in line for line in found), found
