"""Whether the proxy opens caches on demand, unless told: only where nobody else can ask it."""

import socket
from pathlib import Path

import pytest

from nixcache_oci.cli.proxy import _is_local
from tests.support.front import proxy_config
from tests.support.proxy import ProxyProcess


@pytest.mark.parametrize(
    ("listen", "is_local"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("nas", False),
    ],
)
def test_only_this_machine_can_connect(tmp_path: Path, listen: str, is_local: bool) -> None:
    """Others would use this machine's line, and its disk."""
    assert _is_local(proxy_config(tmp_path, listen=listen), ()) is is_local


def test_sockets_count_more_than_the_setting(tmp_path: Path) -> None:
    """systemd's are what is listened on; who is behind a Unix socket, nobody knows."""
    with (
        socket.create_server(("127.0.0.1", 0)) as local,
        socket.create_server(("0.0.0.0", 0)) as everybody,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        config = proxy_config(tmp_path, listen="0.0.0.0")
        assert _is_local(config, [local])
        local_config = proxy_config(tmp_path)
        assert not _is_local(local_config, [local, everybody])
        assert not _is_local(local_config, [unix])


def test_the_default_is_githubs_registry(tmp_path: Path) -> None:
    """An empty setting switches it off."""
    registry = f"oci:{tmp_path / 'cache'}"
    with ProxyProcess(tmp_path / "a", NIXCACHE_REGISTRY=registry) as proxy:
        assert proxy.status()["on_demand"]["open"] == 0
        assert proxy.ask("/registry.example/a/nix-cache-info").status == 404
    with ProxyProcess(tmp_path / "b", NIXCACHE_REGISTRY=registry, NIXCACHE_ON_DEMAND="") as proxy:
        assert proxy.status()["on_demand"] is None
        assert proxy.ask("/owner/name/nix-cache-info").status == 404
