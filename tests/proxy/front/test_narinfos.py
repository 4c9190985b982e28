"""Narinfos, by the front and by the library alone: one server to any client."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from nixcache_oci.clients.layout import Layout
from nixcache_oci.proxy.live_index import LiveIndex
from tests.support.front import read_index
from tests.support.front_requests import Conversation, both_ways, conversations
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import publish

HIT, OTHER_HIT, MISS = (f"/{hash_part_of(seed)}.narinfo" for seed in ("one", "two", "absent"))
ODD = (
    HIT + "?query",
    HIT.upper(),
    "/e" + HIT[2:],
    "/%61" + HIT[2:],
    f"http://evil.example{HIT}",
    f"http://localhost{HIT}",
    f"/{HIT}",
    HIT[1:],
    "/health",
    "/nix-cache-info",
    "/nowhere",
    "/" + "x" * 9000,
    "*",
    "/\u00e9",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    asyncio.run(publish(Layout(folder / "cache"), [store_object("one"), store_object("two")]))
    return folder


@pytest.fixture
async def index(folder: Path) -> LiveIndex:
    return await read_index(folder)


@given(conversation=conversations([HIT, OTHER_HIT, MISS], ODD))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_both_ways_answer_alike(folder: Path, index: LiveIndex, conversation: Conversation) -> None:
    """The same bytes, however they are cut, get the same answers but for Date, and count alike."""
    alone, with_front = await both_ways(folder, index, conversation)
    assert with_front == alone
