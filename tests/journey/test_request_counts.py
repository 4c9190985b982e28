"""What a push, a refresh and a fetch ask of GHCR, request by request: other registries' needs add none."""

from collections import Counter
from datetime import timedelta

import pytest

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.clients.registry.client import Registry
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish
from tests.support.registries import Ghcr
from tests.support.segments import read_tables


def asked(ghcr: Ghcr) -> Counter[str]:
    found = Counter(str(record.operation) for record in ghcr.server.requests)
    ghcr.server.reset_requests()
    return found


@pytest.fixture
def pusher(ghcr: Ghcr) -> Registry:
    return ghcr.client()


async def test_no_request_is_added_at_ghcr(ghcr: Ghcr, pusher: Registry) -> None:
    """Counted before other registries were learnt: a first push, a second one, and a reader."""
    try:
        await publish(pusher, [store_object("one"), store_object("two")])
        first = asked(ghcr)
        await publish(pusher, [store_object("three")], created=CREATED + timedelta(1), in_packs=False)
        second = asked(ghcr)
    finally:
        await pusher.close()
    reader = ghcr.client()
    try:
        listing = await read_listing(reader)
        await reader.resolve("cache-index")
        refresh = asked(ghcr)
        tables = await read_tables(reader, listing)
        assert len(tables) == 2
        fetch = asked(ghcr)
    finally:
        await reader.close()
    reading = {"manifest-get": 1, "manifest-head": 1}
    listing_it = {"tags": 1, "manifest-put": 2, **reading}
    assert first <= Counter({"token": 1, "upload-post": 4, "upload-put": 3, "blob-get": 1, **listing_it})
    assert second <= Counter(
        {"upload-post": 2, "upload-put": 2, "blob-get": 1, "storage-get": 1, **listing_it}
    )
    assert refresh <= Counter({"token": 1, "tags": 2, **reading})
    assert fetch <= Counter({"blob-get": 2, "storage-get": 2})
