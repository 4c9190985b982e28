"""Sessions, and what is logged of their requests."""

import logging

import aiohttp
import pytest

from nixcache_oci.clients.http.session import open_session
from tests.support.upstream_server import answering, serve


async def test_each_request_is_logged_for_who_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    """Method, URL and status; of a URL that may be signed, the origin alone, and no password of any."""
    async with serve(answering(status=404)) as url, open_session(aiohttp.TCPConnector()) as session:
        with caplog.at_level(logging.INFO):
            (await session.get(f"{url}/blobs/one")).release()
        assert not caplog.records
        named = url.replace("://", "://me:secret-word@")
        with caplog.at_level(logging.DEBUG, "nixcache_oci"):
            for asked in (f"{url}/blobs/one", f"{url}/blobs/one?sig=secret-word", f"{named}/blobs/one"):
                (await session.get(asked)).release()
    fields = [vars(record)["fields"] for record in caplog.records]
    assert [(one["method"], str(one["url"]), one["status"]) for one in fields] == [
        ("GET", f"{url}/blobs/one", 404),
        ("GET", url, 404),
        ("GET", f"{url}/blobs/one", 404),
    ]
