"""Bytes of any kind to the real process, in pieces: it answers in HTTP or hangs up, and goes on."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import corpus
from tests.fuzz.conftest import HTTP_SURFACE
from tests.fuzz.mutation import mutants
from tests.fuzz.test_parsers import LONG, QUICK
from tests.hostile.raw_client import converse
from tests.hostile.story import check_well
from tests.support.objects import hash_part_of
from tests.support.proxy import ProxyProcess

HOST = b"Host: localhost\r\n\r\n"
NARINFO = b"GET /" + hash_part_of("small").encode() + b".narinfo HTTP/1.1\r\n" + HOST
HEALTH = b"GET /health HTTP/1.1\r\n" + HOST
# What our own code and the library's parser may answer; above all no 500.
STATUSES = frozenset({100, 200, 206, 400, 403, 404, 405, 411, 413, 414, 416, 417, 426, 431})
MOST_CUTS = 12


def run(proxy: ProxyProcess, extent: settings) -> int:
    """Give how often it was tried."""
    times = 0
    narinfo = proxy.ask(f"/{hash_part_of('small')}.narinfo").body

    @extent
    @given(data=mutants(corpus.seeds("http")), cuts=st.lists(st.integers(0, 1000), max_size=MOST_CUTS))
    def fuzz(data: bytes, cuts: list[int]) -> None:
        nonlocal times
        times += 1
        places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
        for answer in converse(proxy.host, [data[start:end] for start, end in pairwise(places)]):
            assert answer.status in STATUSES
        [first, second] = converse(proxy.host, [NARINFO, HEALTH], answers=2)
        assert (first.status, first.body) == (200, narinfo)
        assert (second.status, second.body) == (200, b"ok\n")

    fuzz()
    check_well(proxy)
    return times


def test_any_bytes(proxy: ProxyProcess, tried: Counter[str]) -> None:
    """The same ones each time."""
    tried[HTTP_SURFACE] += run(proxy, QUICK)


@pytest.mark.soak
def test_any_bytes_for_long(proxy: ProxyProcess, tried: Counter[str]) -> None:
    """Other ones each time."""
    tried[HTTP_SURFACE] += run(proxy, settings(LONG, max_examples=5000))
