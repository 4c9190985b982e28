"""systemd: socket activation, and notifications.

Sources: sd_listen_fds(3), sd_notify(3), systemd.socket(5). Both are simple protocols over the environment: no
library is needed, and the program works without systemd.
"""

import logging
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final, Self

from nixcache_oci.errors import UsageError

FIRST_ACTIVATED_FD: Final = 3

# The manager reads within milliseconds; if it hangs, only the notification is lost.
_SEND_TIMEOUT_SECONDS: Final = 1.0
_MAX_COUNT_DIGITS: Final = 4
_ACTIVATION_VARIABLES: Final = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Notifier:
    """Notifies the service manager; a failure never stops the service."""

    address: str  # the manager's datagram socket: a path, or ``@`` and an abstract name; empty for none

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the manager's address from NOTIFY_SOCKET."""
        return cls(environment.get("NOTIFY_SOCKET", ""))

    def ready(self) -> None:
        """Report readiness: units that wait for this one may start."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Report shutdown, so that the manager does not consider the service hung."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        # A line break would start another assignment, such as MAINPID.
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
    """Take over listening sockets of systemd, non-blocking and not inheritable; none without activation.

    The variables are removed from the environment, so that no child uses the sockets. LISTEN_PID says whether
    they are meant for this process. Raises UsageError if they are not listening stream sockets.
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
