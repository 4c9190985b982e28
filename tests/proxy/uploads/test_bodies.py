"""Bodies that never end: a proxy in this process, whose patience is short."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.proxy.cache_set import ConfiguredCache
from nixcache_oci.proxy.endpoints import uploads as module
from nixcache_oci.proxy.server import serving
from nixcache_oci.proxy.uploads.interface import UploadSettings
from nixcache_oci.proxy.writers.writers import RuleWriters
from tests.support.front import proxy_config
from tests.support.uploads import TOKEN


async def _publish(*_: object) -> dict[object, str]:
    raise AssertionError("nothing comes whole")


async def test_a_body_that_stalls_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it is kept, and it is no fault of the disk."""
    monkeypatch.setattr(module, "STALL_SECONDS", 0.05)
    settings = UploadSettings(
        folder=tmp_path / "spool",
        most_bytes=10**6,
        most_nar_bytes=None,
        quiet_seconds=5,
        writers=RuleWriters({"builder": TOKEN.encode()}),
        sign=lambda narinfo: narinfo,
        is_signing=True,
        publish=_publish,  # type: ignore[arg-type]
    )
    config = proxy_config(tmp_path / "index")
    cache = ConfiguredCache(Layout(tmp_path / "layout"), uploads=settings)
    async with serving(config, [cache]) as [url], asyncio.timeout(30):
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        head = (
            f"PUT /nar/{'0' * 64}.nar HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 1000\r\n\r\n"
        )
        writer.write(head.encode() + b"begun")
        assert b"nothing came for 0.05 s" in await reader.readuntil(b" s\n")
        writer.close()
        await writer.wait_closed()
    assert "spool not written" not in caplog.text
    assert list((tmp_path / "spool" / "incoming").iterdir()) == []
