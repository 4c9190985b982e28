"""A proxy that is killed while it takes uploads and publishes: what it answered with 200 is there, once."""

import http.client
import random
import signal
import threading
from pathlib import Path

from nixcache_oci.nix.signature import SecretKey
from tests.support.objects import store_object
from tests.support.uploads import Sent, UploadProxy, upload_settings

_KILLS = 10
_PATHS = 12  # for each kill


def _upload(proxy: UploadProxy, some: list[Sent], acknowledged: set[str], enough: threading.Event) -> None:
    """Upload until the proxy is gone."""
    for number, sent in enumerate(some):
        try:
            if proxy.upload(sent) == [200, 200]:
                acknowledged.add(sent.path)
        except (OSError, http.client.HTTPException):
            break
        if number == len(some) // 3:
            enough.set()
    enough.set()


def test_what_was_acknowledged_is_published_once(tmp_path: Path) -> None:
    """Killed at any moment of the session and of the publish; nothing else appears."""
    key, moments = SecretKey.generate("uploads-1"), random.Random(19)
    settings = upload_settings(tmp_path / "cache", key, NIXCACHE_UPLOAD_QUIET="0.02")
    sent: dict[str, Sent] = {}
    acknowledged: set[str] = set()
    for kill in range(_KILLS):
        some = [
            Sent.of(
                store_object(
                    f"{kill}-{number}",
                    # Every fourth NAR goes into a file of its own, not into memory and the journal.
                    contents=moments.randbytes(1000 * number if number % 4 else 300_000 + number),
                )
            )
            for number in range(_PATHS)
        ]
        sent |= {one.path: one for one in some}
        with UploadProxy(tmp_path / "proxy", **settings) as proxy:
            proxy.wait_ready()
            enough = threading.Event()
            client = threading.Thread(target=_upload, args=(proxy, some, acknowledged, enough))
            client.start()
            enough.wait(30)
            client.join(moments.uniform(0, 0.3))
            proxy.process.send_signal(signal.SIGKILL)
            client.join(30)
            proxy.process.wait(30)
    with UploadProxy(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        proxy.wait_published()
        proxy.refresh()
        served = {path for path in sent if proxy.ask(path).status == 200}
        assert acknowledged <= served
        assert proxy.status()["entries"] == len(served)
        for path in served:
            narinfo = proxy.ask(path).body.decode()
            url = next(line for line in narinfo.splitlines() if line.startswith("URL: ")).removeprefix(
                "URL: "
            )
            assert proxy.ask(f"/{url}").body == sent[path].content
        assert len(acknowledged) > _KILLS
