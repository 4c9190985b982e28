"""A cache in an OCI layout, for the verbs that look into one."""

from pathlib import Path

import pytest


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing yet, and the environment that names it."""
    monkeypatch.setenv("NIXCACHE_REGISTRY", f"oci:{tmp_path / 'cache'}")
    monkeypatch.setenv("NIXCACHE_INDEX_DIR", str(tmp_path / "index"))
    return tmp_path / "cache"
