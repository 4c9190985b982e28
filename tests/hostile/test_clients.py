"""Clients that take their time, or go away: the others are served, and what is held for them is bounded."""

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from nixcache_oci.oci.digest import Digest
from tests.hostile.raw_client import connect, read_answers, read_to_end
from tests.hostile.story import Tally, check_well, url_of
from tests.support.journey import push_with, put, settings_of
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.registries import Ghcr

MIB = 1024 * 1024
SLOW_CLIENTS = 16
MOST_EACH = 2 * MIB  # what a client that does not read may cost: buffers on both sides, and one chunk
HEAD = b"Host: localhost\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\n" + HEAD


@contextmanager
def slow_readers(proxy: ProxyProcess, url: str, count: int) -> Iterator[list[socket.socket]]:
    """Ask for a NAR and read a kilobyte of it, over buffers as small as can be had."""
    address, _, port = proxy.host.rpartition(":")
    with ExitStack() as connections:
        clients = []
        for _ in range(count):
            client = connections.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(20)
            client.connect((address, int(port)))
            client.sendall(f"GET /{url} HTTP/1.1\r\n".encode() + HEAD)
            clients.append(client)
        for client in clients:
            assert client.recv(1024).startswith(b"HTTP/1.1 200 OK\r\n")
        yield clients


def test_slow_readers_cost_little_and_hold_up_nobody(ghcr: Ghcr, tmp_path: Path, clients: Tally) -> None:
    """16 that read a kilobyte now and then of 48 MiB: one buffer each, and the next client has all of it."""
    blob = os.urandom(48 * MIB)
    digest = Digest.of(blob)
    push_with(ghcr, lambda client: client.push_blob(digest, blob))
    put(ghcr, [store_object("small")])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        url = f"nar/{digest.hex}.nar.zst"
        assert proxy.ask(f"/{url}").body == blob  # whatever one download leaves behind is no cost of the slow
        before = proxy.anonymous_bytes()
        with slow_readers(proxy, url, SLOW_CLIENTS) as readers:
            peak = before
            for _ in range(5):
                for reader in readers:
                    assert reader.recv(1024)
                assert proxy.ask(f"/{hash_part_of('small')}.narinfo").status == 200
                peak = max(peak, proxy.anonymous_bytes())
            assert proxy.ask(f"/{url}").body == blob
            peak = max(peak, proxy.anonymous_bytes())
            assert peak - before < SLOW_CLIENTS * MOST_EACH
        check_well(proxy)
    clients.add(
        "slow readers of a 48 MiB NAR",
        f"below {MOST_EACH // MIB} MiB each; another client has the whole meanwhile",
        times=SLOW_CLIENTS,
    )


@pytest.mark.parametrize("seed", ["small", "large", "upstream"])
def test_clients_that_hang_up_leave_nothing(proxy: ProxyProcess, seed: str, clients: Tally) -> None:
    """By FIN and by RST, before and in the middle of an answer."""
    url = url_of(proxy, seed)
    before = psutil.Process(proxy.process.pid).num_fds()
    for number in range(60):
        connection = connect(proxy.host)
        connection.sendall(f"GET /{url} HTTP/1.1\r\n".encode() + HEAD)
        if number % 2:
            connection.recv(100)
        if number % 3:
            # Lingering for no time at all is how one sends RST.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        connection.close()
    proxy.wait_until(lambda _: psutil.Process(proxy.process.pid).num_fds() <= before + 1)
    assert proxy.ask(f"/{url}").status == 200
    assert proxy.status()["counters"]["nars_cut"] == 0
    clients.add("clients that hang up", "no file stays open; the next has its NAR", 3, times=60)


def wait_until_well(proxy: ProxyProcess) -> None:
    """Connect until it is not closed at once."""
    for _ in range(500):
        with suppress(OSError):
            assert proxy.ask("/health").status == 200
            return
        time.sleep(0.02)
    raise TimeoutError(proxy.log[-2000:])


def test_no_descriptors_left(tmp_path: Path, ghcr: Ghcr, clients: Tally) -> None:
    """Who is connected is answered; who comes then waits or is closed; when some go, all is well again."""
    put(ghcr, [store_object("small")])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        pid = proxy.process.pid
        limit = psutil.Process(pid).num_fds() + 40
        narinfo = f"GET /{hash_part_of('small')}.narinfo HTTP/1.1\r\n".encode() + HEAD
        with ExitStack() as connections:
            early = connections.enter_context(connect(proxy.host))
            early.sendall(narinfo)
            assert read_answers(early.recv(65536))[0].status == 200
            _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, most))
            late = [connections.enter_context(connect(proxy.host)) for _ in range(100)]
            early.sendall(narinfo)
            assert read_answers(early.recv(65536))[0].status == 200
            assert psutil.Process(pid).num_fds() <= limit
            assert len(late) > limit - 40
        wait_until_well(proxy)
        assert proxy.ask(f"/{url_of(proxy, 'small')}").status == 200
        assert proxy.log.count("\n") < 1000
    clients.add("connections beyond the limit of open files", "served again when some have gone", times=100)


def test_a_client_that_ends_its_side_is_answered(proxy: ProxyProcess) -> None:
    """What a shell's pipe into netcat does."""
    with connect(proxy.host) as connection:
        connection.sendall(HEALTH)
        first = connection.recv(65536)
        connection.shutdown(socket.SHUT_WR)
        [answer] = read_answers(first + read_to_end(connection))
    assert answer.body == b"ok\n"
