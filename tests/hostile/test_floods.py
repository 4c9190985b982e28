"""Servers that send without end before an answer begins: the proxy cuts them, and serves on."""

import time
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.hostile.raw_client import flood
from tests.hostile.story import MOST_ANSWER_SECONDS, MOST_MEMORY_BYTES, Tally
from tests.support.objects import hash_part_of
from tests.support.proxy import ProxyProcess

_MIB: Final = 1024 * 1024
_HINT: Final = b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"
_PIECES: Final = {
    "interim answers": _HINT * 1_600,
    "tiny interim answers": b"HTTP/1.1 103 \r\n\r\n" * 4_000,
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000,
}
# The last one is aiohttp's own limit, where the first bytes that come hold too many fields already.
_REASONS: Final = ("more than 8 interim answers", "head has over 65536 bytes", "HTTP")


@pytest.mark.parametrize("piece", _PIECES.values(), ids=_PIECES)
@pytest.mark.parametrize("kind", ["registry", "upstream"])
def test_a_flood_before_an_answer_stops_nobody(kind: str, piece: bytes, tmp_path: Path, data: Tally) -> None:
    """Others are answered meanwhile; the connection is cut, and the reason shows."""
    with flood(piece) as (url, taken):
        settings = (
            {"NIXCACHE_REGISTRY": url, "NIXCACHE_REPO": "o/n"}
            if kind == "registry"
            else {"NIXCACHE_REGISTRY": f"oci:{tmp_path}/none", "NIXCACHE_UPSTREAM": url}
        )
        with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
            process = psutil.Process(proxy.process.pid)
            slowest = 0.0
            for number in range(8):
                assert proxy.ask(f"/{hash_part_of(str(number))}.narinfo").status == 404
                began = time.monotonic()
                assert proxy.ask("/health").status == 200
                slowest = max(slowest, time.monotonic() - began)
            if kind == "registry":
                error = proxy.wait_until(lambda status: status["index"]["last_error"])["index"]["last_error"]
            else:
                [upstream] = proxy.status()["upstreams"]
                error = upstream["last_error"]
                assert upstream["failures"] == 8  # it answers, so that no path speaks for another
            memory = process.memory_info().rss
            log = proxy.log
    assert any(reason in error for reason in _REASONS)
    assert slowest < MOST_ANSWER_SECONDS
    assert memory < MOST_MEMORY_BYTES
    assert max(taken) < 32 * _MIB  # what fits into the buffers on the way
    assert "Traceback" not in log
    assert len(log.splitlines()) < 20
    data.add(f"a flood before the answer of the {kind}", "cut after 8 interim answers, or 64 KiB", times=1)
