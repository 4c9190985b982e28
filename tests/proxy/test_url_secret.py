"""The secret of upstream URLs: the same for all processes and for ever, and never one that others know."""

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nixcache_oci.cache.index_folder import NOWHERE
from nixcache_oci.proxy.upstream_state import KEY_FILE, load_url_secret


def test_it_is_made_once(tmp_path: Path) -> None:
    """By whoever is first of many; nobody else may read it, and nothing else is left behind."""
    folder = tmp_path / "cache" / "index"
    with ThreadPoolExecutor(8) as pool:
        [secret] = set(pool.map(load_url_secret, [folder] * 32))
    assert len(secret) == 32
    assert load_url_secret(folder) == secret
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600


def test_each_folder_has_its_own(tmp_path: Path) -> None:
    """It is no constant."""
    assert load_url_secret(tmp_path / "a") != load_url_secret(tmp_path / "b")


def _short(path: Path) -> None:
    path.write_bytes(bytes(31))
    path.chmod(0o600)


def _shared(path: Path) -> None:
    path.write_bytes(bytes(32))
    path.chmod(0o640)


def _link(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(32))
    other.chmod(0o600)
    path.symlink_to(other)


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _nothing(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_short, _shared, _link, _fifo, Path.mkdir, _nothing])
def test_what_cannot_be_used_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """The proxy starts all the same, with a secret that nobody else can have."""
    (tmp_path / "index").mkdir()
    spoil(tmp_path / "index" / KEY_FILE)
    first, second = (load_url_secret(tmp_path / "index") for _ in range(2))
    assert first != second
    assert bytes(32) not in {first, second}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_who_has_no_home_folder_has_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    """Services and containers run under users without one."""
    assert len(load_url_secret(NOWHERE)) == 32
    assert [record.__dict__["fields"]["error"] for record in caplog.records] == ["there is no home folder"]
