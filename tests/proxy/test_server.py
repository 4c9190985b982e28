"""The process: how it starts, how it refuses to, and how it stops."""

import argparse
import asyncio
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from nixcache_oci.cli.use import find_proxy_url
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.settings.values import Values
from tests.support.journey import settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import publish
from tests.support.registries import Ghcr

LARGE = store_object("large", contents=random.Random(1).randbytes(32 * 1024 * 1024))


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """A proxy over a layout that holds one large object."""

    async def fill() -> None:
        await publish(Layout(tmp_path / "cache"), [LARGE])

    asyncio.run(fill())
    return {"NIXCACHE_REGISTRY": f"oci:{tmp_path}/cache"}


def run_proxy(folder: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Run it where it is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "nixcache_oci", "proxy"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "NIXCACHE_REGISTRY": f"oci:{folder}/cache",
            "NIXCACHE_UPSTREAM": "",
            "NIXCACHE_INDEX_DIR": str(folder / "index"),
            "NIXCACHE_PORT": "0",
            **settings,
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def error_line(run: "subprocess.CompletedProcess[str]") -> str:
    """The one line that says what is wrong; logs may stand before it, a traceback may not."""
    assert "Traceback" not in run.stderr
    return run.stderr.splitlines()[-1]


# Runs the proxy, and writes what glibc tells of its memory to a file.
_WITH_MALLOC_INFO = """
import ctypes, sys
from nixcache_oci.cli.main import main
status = main(["proxy"])
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="needs glibc")
def test_all_threads_share_one_arena(settings: dict[str, str], tmp_path: Path) -> None:
    """What threads free stays in their arenas: after a first fetch, more than all keys of a million paths."""
    told = tmp_path / "malloc-info"
    command = [sys.executable, "-c", _WITH_MALLOC_INFO, str(told)]
    with ProxyProcess(tmp_path, command=command, **settings) as proxy:
        proxy.wait_ready()
        narinfo = proxy.ask(f"/{LARGE.narinfo.store_path.hash_part}.narinfo").body
        assert proxy.ask(f"/{NarInfo.parse(narinfo).url}").status == 200
        assert proxy.stop() == 0
    assert told.read_text().count("<heap nr=") == 1


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """What, where and the remedy; exit status 1."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        run = run_proxy(tmp_path, NIXCACHE_PORT=str(port))
    assert run.returncode == 1
    line = error_line(run)
    assert str(port) in line
    assert "address already in use" in line
    assert "NIXCACHE_PORT" in line


@pytest.mark.parametrize("address", ["host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_one_clear_line(tmp_path: Path, address: str) -> None:
    """Nothing listens there that could be stopped."""
    run = run_proxy(tmp_path, NIXCACHE_LISTEN=address)
    assert run.returncode == 1
    line = error_line(run)
    assert f"cannot listen on {address} " in line
    assert line.endswith(
        "; set NIXCACHE_LISTEN to an address of this machine, or NIXCACHE_PORT to a port that you may use"
    )


@pytest.mark.needs("bwrap")
@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_second_run_on_a_disk_that_takes_nothing(
    settings: dict[str, str], tmp_path: Path, state: str
) -> None:
    """The index that is there is served at once, and what is new is served beside it."""
    index = tmp_path / "proxy" / "index"
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
    saved = index.rename(tmp_path / "saved")
    index.mkdir()
    # The temporary folder is on the same disk, so that what is new can only be in memory.
    bwrap = ["bwrap", "--die-with-parent", "--dev-bind", "/", "/"]
    outer = [*bwrap, "--size", str(1024 * 1024), "--tmpfs", str(index)]
    steps = f'cp -r {saved}/. {index}; dd if=/dev/zero of={index}/filler bs=4096 2>/dev/null; exec "$@"'
    if state == "read-only":
        outer = [*bwrap, "--ro-bind", str(saved), str(index)]
        steps = 'exec "$@"'
    command = [*outer, "sh", "-c", steps, "sh", sys.executable, "-m", "nixcache_oci", "proxy"]
    asyncio.run(publish(Layout(tmp_path / "cache"), [store_object("new")]))
    with ProxyProcess(tmp_path / "proxy", command=command, **settings, TMPDIR=str(index)) as proxy:
        proxy.wait_until(lambda status: status["entries"] == 2)
        for seed in ("large", "new"):
            assert proxy.ask(f"/{hash_part_of(seed)}.narinfo").status == 200
        assert "set NIXCACHE_INDEX_DIR to a writable folder" in proxy.log


@pytest.mark.parametrize("listen", ["127.0.0.1", "0.0.0.0", "::", "::1", "localhost", "127.0.0.2"])
def test_the_proxy_listens_where_use_says(settings: dict[str, str], tmp_path: Path, listen: str) -> None:
    """``use`` writes an address into nix.conf: whatever is set, the proxy answers there."""
    with ProxyProcess(tmp_path / "proxy", **settings, NIXCACHE_LISTEN=listen) as proxy:
        port = proxy.host.rpartition(":")[2]
        told = find_proxy_url(
            Values({"NIXCACHE_LISTEN": listen, "NIXCACHE_PORT": port}, argparse.Namespace())
        )
        proxy.url = told
        assert proxy.ask("/health").status == 200


def test_it_stops_within_five_seconds_with_a_transfer_running(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """A client that reads slowly must not hold up a restart; it resumes with the next process."""
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        narinfo = NarInfo.parse(proxy.ask(f"/{hash_part_of('large')}.narinfo").body)
        connection = HTTPConnection(proxy.host, timeout=30)
        connection.request("GET", f"/{narinfo.url}")
        response = connection.getresponse()
        assert response.read(1000)
        started = time.monotonic()
        assert proxy.stop() == 0
        # A promise to systemd, not a measure of speed: after it comes SIGKILL.
        assert time.monotonic() - started < 5
        response.close()
        connection.close()
    assert "Traceback" not in proxy.log


def test_socket_activation(settings: dict[str, str], tmp_path: Path) -> None:
    """The port is systemd's: it never refuses, not even while the service starts; and systemd is told."""
    with socket.socket() as listening, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        host = "{}:{}".format(*listening.getsockname())
        # Asked before there is a process: the connection waits in the socket's queue.
        early = HTTPConnection(host, timeout=30)
        early.request("GET", "/nix-cache-info")
        # What systemd does between fork and exec.
        hand_over = (
            f"import os, sys; os.dup2({listening.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        )
        start = "os.execv(sys.executable, [sys.executable, '-m', 'nixcache_oci', 'proxy'])"
        with subprocess.Popen(
            [sys.executable, "-c", f"{hand_over} {start}"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "LISTEN_FDS": "1",
                "NOTIFY_SOCKET": manager.getsockname(),
                "NIXCACHE_UPSTREAM": "",
                # Neither is used: the socket says where.
                "NIXCACHE_LISTEN": "192.0.2.1",
                "NIXCACHE_PORT": "1",
                **settings,
            },
            pass_fds=[listening.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                answer = early.getresponse()
                assert answer.status == 200
                assert b"StoreDir: /nix/store" in answer.read()
                early.close()
                assert process.stdout is not None
                assert process.stdout.readline() == f"listening on http://{host}\n"
                assert manager.recv(100) == b"READY=1"
                process.terminate()
                assert manager.recv(100) == b"STOPPING=1"
                assert "event=stopping" in process.communicate(timeout=20)[1]
                assert process.returncode == 0
            finally:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_good_end(settings: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    """From systemd, or from a terminal: exit status 0, and not a word of trouble."""
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        proxy.process.send_signal(number)
        assert proxy.process.wait(20) == 0
    assert "Traceback" not in proxy.log
    assert "level=error" not in proxy.log


def test_a_signal_while_the_registry_hangs(ghcr: Ghcr, tmp_path: Path) -> None:
    """A refresh under way, and a client that waits for it, hold up nothing."""
    ghcr.server.fault("token", "stall", times=None)
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        connection = HTTPConnection(proxy.host, timeout=30)
        connection.request("GET", f"/{hash_part_of('large')}.narinfo")
        started = time.monotonic()
        assert proxy.stop() == 0
        # As above: after that comes SIGKILL.
        assert time.monotonic() - started < 5
        connection.close()
    ghcr.server.clear_faults()
    assert "Traceback" not in proxy.log


def test_a_start_that_fails_while_the_registry_hangs(ghcr: Ghcr, tmp_path: Path) -> None:
    """The index is being refreshed already when the port turns out to be taken: still one line, at once."""
    ghcr.server.fault("token", "stall", times=None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        settings = settings_of(ghcr, tmp_path) | {"NIXCACHE_PORT": str(other.getsockname()[1])}
        started = time.monotonic()
        run = run_proxy(tmp_path, **settings)
        assert time.monotonic() - started < 10
    ghcr.server.clear_faults()
    assert run.returncode == 1
    assert "address already in use" in error_line(run)
