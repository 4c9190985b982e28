"""The edges to systemd: sockets that it opened for us, and what we tell it.

Sources: sd_listen_fds(3), sd_notify(3), systemd.socket(5). Both are plain protocols over the environment,
so that a unit works without a library, and the program without systemd.
"""

import logging
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.errors import UsageError

FIRST_ACTIVATED_FD: Final = 3

# The manager reads within milliseconds; should it hang, serving goes on and only the notification is lost.
_SEND_TIMEOUT_SECONDS: Final = 1.0
_MAX_COUNT_DIGITS: Final = 4
_ACTIVATION_VARIABLES: Final = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notifier:
    """Tells the service manager how the service is; trouble in telling never stops the service.

    Attributes:
        address: the manager's datagram socket: a path, or ``@`` and an abstract name; empty for none.
    """

    address: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Find the manager, which says in NOTIFY_SOCKET where it listens."""
        return cls(environment.get("NOTIFY_SOCKET", ""))

    def ready(self) -> None:
        """Say that requests are answered: units that wait for this one may start."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the service shuts down, so that the manager does not take it for hung."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        # A line of its own would be another assignment: READY=1, or MAINPID of somebody else.
        self._send("STATUS=" + "".join(letter if letter.isprintable() else " " for letter in text))

    def _send(self, message: str) -> None:
        if not self.address:
            return
        # An abstract name starts with a zero byte, which an environment variable cannot hold: unix(7).
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
                manager.settimeout(_SEND_TIMEOUT_SECONDS)
                manager.sendto(message.encode(errors="replace"), address)
        except OSError as error:
            _log.warning(
                "the service manager was not told",
                extra={"fields": {"socket": self.address, "state": message, "error": str(error)}},
            )


def activated_sockets(environment: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Take over the listening sockets that systemd opened, non-blocking and closed in child processes.

    The variables are removed from the environment, so that no child takes the sockets for its own.

    Args:
        environment: of this process; LISTEN_PID says whether the sockets are meant for it.
        pid: of this process.

    Returns:
        the sockets, none where the program was started otherwise.

    Raises:
        UsageError: what was handed over are no listening stream sockets.
    """
    given = {name: environment.pop(name, "") for name in _ACTIVATION_VARIABLES}
    if given["LISTEN_PID"] != str(pid):
        return []
    count = given["LISTEN_FDS"]
    if not (count.isascii() and count.isdigit() and len(count) <= _MAX_COUNT_DIGITS):
        raise UsageError(f"LISTEN_FDS {count[:40]!r}: expected a number of sockets from systemd")
    sockets: list[socket.socket] = []
    try:
        for descriptor in range(FIRST_ACTIVATED_FD, FIRST_ACTIVATED_FD + int(count)):
            sockets.append(_take_over(descriptor))  # noqa: PERF401 -- what was taken must be closed on an error
    except UsageError:
        for taken in sockets:
            taken.close()
        raise
    return sockets


def _take_over(descriptor: int) -> socket.socket:
    wrong = (
        f"socket activation: file descriptor {descriptor} is not a listening stream socket; "
        "use ListenStream= and Accept=no in the socket unit"
    )
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise UsageError(f"{wrong} ({error.strerror})") from error
    listens = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if taken.type != socket.SOCK_STREAM or not listens:
        taken.close()
        raise UsageError(wrong)
    taken.set_inheritable(False)
    taken.setblocking(False)
    return taken
