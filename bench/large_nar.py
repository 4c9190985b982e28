"""One large NAR through the proxy, every byte hashed; beside nginx, which hashes nothing.

The client only counts bytes: hashing them there, too, would take a core from what is measured.
"""

import hashlib
import os
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bench.figures import Series, Target
from bench.nginx import nginx
from bench.scenario import OURS, Bench, Measurement
from nixcache_oci.clients.layout import Layout
from nixcache_oci.clients.repository import Repository
from nixcache_oci.oci.digest import Digest
from tests.support.docker_registry import DockerRegistry
from tests.support.journey import push_with
from tests.support.proxy import ProxyProcess
from tests.support.registries import REPO, RunningRegistry

TITLE = "one large NAR, from a local registry and from an OCI layout"

_PIECE_BYTES = 1024 * 1024
_SIZE_MIB, _QUICK_SIZE_MIB = 1024, 64
_CLIENTS = 16
_DEFAULTS = "nginx, default buffers"
_TUNED = "nginx, 256 KiB buffers"
_SENDFILE = "nginx, sendfile"
_BUFFERS = (
    "proxy_buffer_size 256k; proxy_buffers 8 256k; proxy_busy_buffers_size 512k; proxy_max_temp_file_size 0;"
)


def run(bench: Bench) -> None:
    """Measure one client and sixteen from a registry, and one from a layout."""
    mebibytes = _QUICK_SIZE_MIB if bench.is_quick else _SIZE_MIB
    with tempfile.TemporaryDirectory() as name, DockerRegistry(auth=False) as server:
        folder = Path(name)
        registry = RunningRegistry(server, server.user, server.password)
        large = _fill(registry, folder, mebibytes)
        shared = _fill(registry, folder, mebibytes // 4)
        _measure_registry(bench, folder, server.host, large, shared)
        _measure_layout(bench, folder, large)


def _measure_registry(bench: Bench, folder: Path, registry: str, large: Digest, shared: Digest) -> None:
    series = Series("from a registry", "MB/s", better="higher")
    upstream = f"proxy_pass http://{registry}; proxy_http_version 1.1; proxy_set_header Connection '';"
    settings = {"NIXCACHE_REGISTRY": registry, "NIXCACHE_REPO": REPO}
    blob = f"/v2/{REPO}/nix-cache/blobs/{large}"
    sixteen = f"{OURS}, {_CLIENTS} clients"
    with (
        ProxyProcess(folder / "registry-proxy", **settings) as proxy,
        nginx(folder / "default", f"location / {{ {upstream} }}") as default,
        nginx(folder / "tuned", f"location / {{ {upstream} {_BUFFERS} }}") as tuned,
    ):
        bench.compare(
            {
                OURS: partial(_measure, series, proxy.host, _nar(large)),
                sixteen: partial(_measure, series, proxy.host, _nar(shared), clients=_CLIENTS),
                _DEFAULTS: partial(_measure, series, default, blob),
                _TUNED: partial(_measure, series, tuned, blob),
            }
        )
    bench.expect(Target(series, OURS, 1.3, beside=_DEFAULTS))
    bench.expect(Target(series, OURS, 0.5, beside=_TUNED))
    bench.expect(Target(series, sixteen, 1.0, beside=OURS))


def _measure_layout(bench: Bench, folder: Path, large: Digest) -> None:
    series = Series("from an OCI layout", "MB/s", better="higher")
    settings = {"NIXCACHE_REGISTRY": f"oci:{folder}/cache"}
    with (
        ProxyProcess(folder / "layout-proxy", **settings) as proxy,
        nginx(folder / "file", f"root {folder}/cache/blobs/sha256;") as plain,
    ):
        bench.compare(
            {
                OURS: partial(_measure, series, proxy.host, _nar(large)),
                _SENDFILE: partial(_measure, series, plain, f"/{large.hex}"),
            }
        )
    bench.expect(Target(series, OURS, 0.5, beside=_SENDFILE))


def _nar(digest: Digest) -> str:
    return f"/nar/{digest.hex}.nar.zst"


def _measure(series: Series, host: str, path: str, *, clients: int = 1) -> Measurement:
    started = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        size = sum(pool.map(_download, [host] * clients, [path] * clients))
    return {series: size / (time.monotonic() - started) / 1e6}


def _download(host: str, path: str) -> int:
    name, _, port = host.partition(":")
    piece = bytearray(_PIECE_BYTES)
    received = 0
    with socket.create_connection((name, int(port))) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        with connection.makefile("rb", buffering=0) as answer:
            while size := answer.readinto(piece):
                if not received and not piece.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(f"{host}{path}: {bytes(piece[:200])!r}")
                received += size
    return received


def _fill(registry: RunningRegistry[DockerRegistry], folder: Path, mebibytes: int) -> Digest:
    """Put random bytes into the registry and into a layout."""
    blob = folder / "blob"
    hasher = hashlib.sha256()
    with blob.open("wb") as file:
        for _ in range(mebibytes):
            piece = os.urandom(2**20)
            hasher.update(piece)
            file.write(piece)
    digest = Digest(hasher.hexdigest())

    async def push(client: Repository) -> None:
        await client.push_blob(digest, blob)
        await Layout(folder / "cache").push_blob(digest, blob)

    push_with(registry, push)
    blob.unlink()
    return digest
