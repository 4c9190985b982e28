"""Old URLs of uploaded NARs: how many are remembered, and for how long."""

from pathlib import Path

import pytest

from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.proxy.uploads import sent_before as module
from nixcache_oci.proxy.uploads.sent_before import KEPT_SECONDS, SentBefore
from tests.support.objects import hash_part_of

_PART = hash_part_of("one")


def _hex(number: int) -> str:
    return f"{number:064x}"


def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit at once, and after 30 days over a restart."""
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    now = [10.0**9]
    monkeypatch.setattr("time.time", lambda: now[0])
    known = SentBefore(RootedPath(tmp_path))
    for number in range(4):
        known.add(_hex(number), _PART)
        now[0] += 1
    assert [known.find(_hex(number)) for number in range(4)] == [None, _PART, _PART, _PART]
    now[0] += KEPT_SECONDS - 2
    known.save()
    again = SentBefore(RootedPath(tmp_path))
    again.load()
    assert [again.find(_hex(number)) for number in range(4)] == [None, None, None, _PART]
