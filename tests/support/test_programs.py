import os
from contextlib import AbstractContextManager, nullcontext

import pytest

from tests.support.programs import find_program, pytest_runtest_setup


@pytest.mark.parametrize(
    ("program", "ci", "ends_in"),
    [
        ("sh", "true", nullcontext()),
        ("no-such-program", "", pytest.raises(pytest.skip.Exception, match="not installed: no-such-program")),
        ("no-such-program", "true", pytest.raises(pytest.fail.Exception, match="no-such-program")),
    ],
    ids=["there", "missing", "missing in CI"],
)
def test_needs(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    ci: str,
    ends_in: AbstractContextManager[object],
) -> None:
    """A test whose program is missing is skipped by name, and fails in CI."""
    monkeypatch.setenv("CI", ci)
    request.node.add_marker(pytest.mark.needs(program))
    with ends_in:
        pytest_runtest_setup(request.node)


@pytest.mark.needs("nginx")
def test_servers_are_found() -> None:
    """Debian keeps servers outside of a user's PATH."""
    path = find_program("nginx")
    assert path is not None
    assert os.access(path, os.X_OK)
