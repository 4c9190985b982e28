"""The marker ``needs``: which real programs a test runs.

A test whose program is missing is skipped, and the reason names the program. Where CI=true it fails instead:
there a missing program is a mistake, not a choice.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

# The same program where no package has its own name.
_OTHER_NAMES: Final = {"chromium": ("chromium-browser", "google-chrome")}


def find_program(name: str) -> str | None:
    """Find a program beside this Python, in PATH, or where Debian puts servers; None where it is missing."""
    beside, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    folders = os.pathsep.join([beside, path, "/usr/local/sbin", "/usr/sbin", "/sbin"])
    found = (shutil.which(one, path=folders) for one in (name, *_OTHER_NAMES.get(name, ())))
    return next((one for one in found if one is not None), None)


def require_program(name: str) -> str:
    """Find a program."""
    path = find_program(name)
    if path is None:
        raise RuntimeError(f"{name} is not installed; mark the test with needs({name!r})")
    return path


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): the real programs that this test runs")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail, before any fixture looks for the program."""
    names = [name for mark in item.iter_markers("needs") for name in mark.args]
    missing = sorted({name for name in names if find_program(name) is None})
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)} (make programs installs what is missing)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


_SWITCHED_OFF = ("aiohttp.access", "aiohttp.server")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test must not depend on which verbs others ran before it in the same process."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    disabled = {name: logging.getLogger(name).disabled for name in _SWITCHED_OFF}
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
    for name, was_disabled in disabled.items():
        logging.getLogger(name).disabled = was_disabled
