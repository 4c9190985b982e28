import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest

from nixcache_oci.errors import UsageError
from nixcache_oci.proxy.systemd import Notifier, activated_sockets

# The child puts what it was given at descriptor 3 and following, as systemd does, and names itself.
_CHILD = textwrap.dedent("""
    import json, os, sys
    from nixcache_oci.errors import UsageError
    from nixcache_oci.proxy.systemd import activated_sockets

    given = [os.dup(int(text)) for text in sys.argv[2:]]
    for number, descriptor in enumerate(os.dup2(one, 100 + n) for n, one in enumerate(given)):
        os.dup2(descriptor, 3 + number)
    environment = os.environ
    environment["LISTEN_PID"] = str(os.getpid() if sys.argv[1] == "mine" else os.getppid())
    environment["LISTEN_FDS"] = str(len(given))
    environment["LISTEN_FDNAMES"] = "http:https"
    try:
        sockets = activated_sockets(environment, os.getpid())
    except UsageError as error:
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({
            "ports": [taken.getsockname()[1] for taken in sockets],
            "descriptors": [taken.fileno() for taken in sockets],
            "inheritable": any(taken.get_inheritable() for taken in sockets),
            "blocking": any(taken.getblocking() for taken in sockets),
            "left": [name for name in environment if name.startswith("LISTEN_")],
        }))
""")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        yield listening


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def _start_child(whose: str, *given: socket.socket | TextIO) -> dict[str, object]:
    descriptors = [one.fileno() for one in given]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, whose, *map(str, descriptors)],
        pass_fds=descriptors,
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
    )
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_notifications(manager: socket.socket) -> None:
    """The manager hears each state as one assignment."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready()
    notifier.status("12 paths")
    notifier.stopping()
    assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"STATUS=12 paths", b"STOPPING=1"]


def test_abstract_address() -> None:
    """An @ stands for the zero byte of a name that is no file."""
    name = f"nixcache-oci-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(5)
        Notifier("@" + name).ready()
        assert listening.recv(100) == b"READY=1"


def test_status_forges_nothing(manager: socket.socket) -> None:
    """A text from elsewhere cannot become an assignment of its own."""
    Notifier(manager.getsockname()).status("broken\nMAINPID=1\x00 \udcff")
    assert manager.recv(100) == b"STATUS=broken MAINPID=1   "


def test_without_manager(caplog: pytest.LogCaptureFixture) -> None:
    """Started by hand, there is nobody to tell, and that is no event."""
    Notifier.from_environment({}).ready()
    assert not caplog.records


def test_dead_manager_does_not_stop_us(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trouble in telling is logged, and serving goes on."""
    with caplog.at_level(logging.WARNING):
        Notifier(str(tmp_path / "nobody")).ready()
    assert [record.message for record in caplog.records] == ["the service manager was not told"]


def test_full_manager_does_not_block_us(
    manager: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manager that reads nothing costs a bounded time."""
    monkeypatch.setattr("nixcache_oci.proxy.systemd._SEND_TIMEOUT_SECONDS", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                filler.sendto(b"x", manager.getsockname())
        Notifier(manager.getsockname()).ready()
    assert len(caplog.records) == 1


def test_takes_over_the_sockets(listener: socket.socket) -> None:
    """The sockets that systemd opened are ours, and no child process gets them or hears of them."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = [listener.getsockname()[1], other.getsockname()[1]]
        assert _start_child("mine", listener, other) == {
            "ports": ports,
            "descriptors": [3, 4],
            "inheritable": False,
            "blocking": False,
            "left": [],
        }


def test_sockets_of_another_process_are_left_alone(listener: socket.socket) -> None:
    """Variables that a parent left behind do not make its descriptors ours."""
    answer = _start_child("another's", listener)
    assert (answer["ports"], answer["left"]) == ([], [])


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_refuses_what_does_not_listen(listener: socket.socket, kind: socket.SocketKind) -> None:
    """A unit with ListenDatagram= or Accept=yes cannot work: the start says so."""
    with socket.socket(socket.AF_INET, kind) as other:
        answer = _start_child("mine", listener, other)
    assert "descriptor 4 is not a listening stream socket; use ListenStream=" in str(answer["error"])


def test_refuses_what_listens_otherwise(tmp_path: Path) -> None:
    """HTTP needs a stream; a socket that keeps messages apart is none, though it listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(tmp_path / "socket"))
        other.listen()
        answer = _start_child("mine", other)
    assert "descriptor 3 is not a listening stream socket" in str(answer["error"])


def test_refuses_what_is_no_socket(tmp_path: Path) -> None:
    """A file in a socket's place, as of OpenFile=, ends the start with a line."""
    with (tmp_path / "file").open("w") as other:
        answer = _start_child("mine", other)
    assert "descriptor 3 is not a listening stream socket" in str(answer["error"])


def test_refuses_what_is_no_count() -> None:
    """Variables that systemd cannot have set are an error, not a crash."""
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x", "PATH": "/bin"}
    with pytest.raises(UsageError, match=r"^LISTEN_FDS 'x': expected a number of sockets from systemd$"):
        activated_sockets(environment, os.getpid())
    assert environment == {"PATH": "/bin"}


def test_without_systemd() -> None:
    """Started by hand, there are no sockets."""
    assert activated_sockets({}, os.getpid()) == []
