"""What is remembered of upstreams: those that left, for 30 days, and the secret of their URLs for ever."""

import os
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nixcache_oci.cache.index_folder import NOWHERE
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.proxy.upstream_state import (
    FORMER_FILE,
    KEY_FILE,
    MOST_FORMER,
    REMEMBERED_SECONDS,
    load_url_secret,
    remember_upstreams,
)

A, B = "http://a.example/", "https://b.example/cache/"


def remember(folder: Path, urls: Sequence[str], now: float) -> list[str]:
    former = remember_upstreams(folder, [parse_upstream(url) for url in urls], now)
    assert not any(upstream.authorization for upstream in former)
    return list(map(str, former))


def test_one_is_remembered_from_when_it_left(tmp_path: Path) -> None:
    """However long it was configured before; not while it is, nor longer than Nix remembers."""
    year = 365 * 24 * 3600.0
    assert remember(tmp_path, [A], 0) == []
    assert remember(tmp_path, [B], year) == [A]
    assert remember(tmp_path, [B], year + REMEMBERED_SECONDS - 1) == [A]
    assert remember(tmp_path, [B, A], year + REMEMBERED_SECONDS - 1) == []
    assert remember(tmp_path, [], 2 * year) == [B, A]
    assert remember(tmp_path, [], 2 * year + REMEMBERED_SECONDS) == []


def test_credentials_are_not_written(tmp_path: Path) -> None:
    """Nor is anything that others may read."""
    remember(tmp_path, ["https://user:hidden@a.example/"], 0)
    file = tmp_path / FORMER_FILE
    assert "hidden" not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert remember(tmp_path, [], 1) == ["https://a.example/"]


def test_few_are_remembered(tmp_path: Path) -> None:
    """The newest."""
    for number in range(MOST_FORMER + 3):
        remember(tmp_path, [f"https://{number}.example/"], number)
    former = remember(tmp_path, [], 1000)
    assert len(former) == MOST_FORMER
    assert former[0] == f"https://{MOST_FORMER + 2}.example/"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"upstreams": 1}', '{"upstreams": {"https://a.example": 1}}', "[" * 100_000]
    + [f'{{"upstreams": {{"{url}": 1}}}}' for url in ("file:///etc/", "https://u:p@a.example/", "x")],
)
def test_a_damaged_file_is_no_reason_not_to_start(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and written anew."""
    (tmp_path / FORMER_FILE).write_text(content)
    (tmp_path / FORMER_FILE).chmod(0o600)
    assert remember(tmp_path, [A], 10) == []
    assert "former upstreams are not known" in caplog.text
    assert remember(tmp_path, [], 11) == [A]


def test_what_others_may_have_written_is_not_read(tmp_path: Path) -> None:
    """Who can write it decides where we send requests."""
    remember(tmp_path, [A], 0)
    (tmp_path / FORMER_FILE).chmod(0o666)
    assert remember(tmp_path, [], 1) == []


def test_a_folder_that_cannot_be_used_is_no_reason_not_to_start(tmp_path: Path) -> None:
    """Nothing is remembered then."""
    (tmp_path / "file").write_text("")
    assert remember(tmp_path / "file" / "index", [A], 0) == []
    (tmp_path / FORMER_FILE).mkdir()
    assert remember(tmp_path, [A], 0) == []


def test_the_secret_is_made_once(tmp_path: Path) -> None:
    """By whoever is first of many; nobody else may read it, and nothing else is left behind."""
    folder = tmp_path / "cache" / "index"
    with ThreadPoolExecutor(8) as pool:
        [secret] = set(pool.map(load_url_secret, [folder] * 32))
    assert len(secret) == 32
    assert load_url_secret(folder) == secret
    assert [path.name for path in folder.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600


def test_each_folder_has_its_own_secret(tmp_path: Path) -> None:
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
def test_a_secret_that_cannot_be_used_is_named(
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
