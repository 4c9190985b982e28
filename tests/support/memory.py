"""Memory of the proxy while many clients download a large NAR at once."""

import hashlib
import http.client
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from nixcache_oci.clients.repository import Repository
from nixcache_oci.oci.digest import Digest
from tests.support.journey import push_with, settings_of
from tests.support.proxy import ProxyProcess
from tests.support.registries import AnyRegistry

_MIB = 1024 * 1024
_PIECE_BYTES = 256 * 1024
_MOST_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What was seen.

    Attributes:
        idle_bytes: resident before the first download.
        peak_bytes: the most that was resident at any time.
        bytes_per_second: of all clients together.
    """

    idle_bytes: int
    peak_bytes: int
    bytes_per_second: float


def measure(registry: AnyRegistry, folder: Path, *, clients: int, mebibytes: int) -> MemoryUse:
    """Let so many clients download the same NAR of random bytes, and watch the proxy."""
    blob, digest = _make_blob(folder / "blob", mebibytes)

    async def push(client: Repository) -> None:
        await client.push_blob(digest, blob)

    push_with(registry, push)
    blob.unlink()
    with ProxyProcess(folder / "proxy", **settings_of(registry, folder)) as proxy:
        proxy.wait_ready()
        idle = peak = proxy.rss_bytes()
        wrong: list[str] = []
        threads = [
            threading.Thread(target=_download, args=(proxy.host, digest, wrong)) for _ in range(clients)
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            peak = max(peak, proxy.rss_bytes())
            time.sleep(0.02)
        seconds = time.monotonic() - started
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {clients} downloads were not right: {wrong[0]}")
    return MemoryUse(idle, peak, clients * mebibytes * _MIB / seconds)


def _make_blob(path: Path, mebibytes: int) -> tuple[Path, Digest]:
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(mebibytes):
            piece = os.urandom(_MIB)
            hasher.update(piece)
            file.write(piece)
    return path, Digest(hasher.hexdigest())


def _download(host: str, digest: Digest, wrong: list[str]) -> None:
    hasher = hashlib.sha256()
    connection = http.client.HTTPConnection(host, timeout=_MOST_SECONDS)
    try:
        connection.request("GET", f"/nar/{digest.hex}.nar.zst")
        response = connection.getresponse()
        piece = bytearray(_PIECE_BYTES)
        while size := response.readinto(piece):
            hasher.update(memoryview(piece)[:size])
    except OSError as error:
        wrong.append(str(error))
    finally:
        connection.close()
    if hasher.hexdigest() != digest.hex:
        wrong.append("wrong bytes")
