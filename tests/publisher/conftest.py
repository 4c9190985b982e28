"""A store to stage from, a folder to stage into, and what does it."""

from pathlib import Path

import pytest

from tests.publisher.made_store import MadeStore
from tests.publisher.staging_story import Stager


@pytest.fixture
def store(tmp_path: Path) -> MadeStore:
    return MadeStore(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging"


@pytest.fixture
def stager(store: MadeStore, folder: Path) -> Stager:
    return Stager(store, folder)
