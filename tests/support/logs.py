"""What a verb sets up for its whole process, levels and handlers of logs, ends with the test that ran it."""

import logging
from collections.abc import Iterator

import pytest

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
