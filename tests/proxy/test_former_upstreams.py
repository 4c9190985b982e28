"""Upstreams that left the configuration: remembered for 30 days, without their credentials."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.proxy.upstream_state import (
    FORMER_FILE,
    MOST_FORMER,
    REMEMBERED_SECONDS,
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
