"""Limits of all client connections together: their number, idle times, and memory.

If a limit is exceeded, the connection that was idle for longest is closed; HTTP clients reconnect when
necessary.
"""

import asyncio
import heapq
import logging
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

_log = logging.getLogger(__name__)

IDLE_SECONDS: Final = 3630.0
"""A connection may be idle for at least this long: the keep-alive of the HTTP library."""

HEAD_SECONDS: Final = 30.0
"""Timeout of a request's head; for detached connections, of idleness."""

STALL_SECONDS: Final = 300.0
"""Timeout of clients that read no byte; slow ones that read some are not limited."""

MOST_HELD_BYTES: Final = 32 * 1024 * 1024
"""Pipelined and partial requests of all clients; beyond, the client that adds to them is cut off."""

MOST_UNREAD_BYTES: Final = 96 * 1024 * 1024
"""Unread responses of all clients, except streamed NARs; beyond, the oldest is cut."""

MOST_HELD_OF_ONE_BYTES: Final = 512 * 1024
"""What one client may pipeline, including bodies, which are not read."""

# A head and a request or two: no client is cut off for less.
_FREE_BYTES: Final = 4 * 1024
# So many are closed at once, because finding them takes time.
_SHARE_CLOSED: Final = 16

# linux/tcp.h, struct tcp_info; other systems have another struct of that name.
_TCP_INFO: Final = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None
_TCP_INFO_BYTES: Final = 148
_UNACKED_PACKETS: Final = struct.Struct("=24xI")
_ACKED_BYTES: Final = struct.Struct("=120xQ")
_UNSENT_BYTES: Final = struct.Struct("=144xI")
_LINGER_NOT: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True, eq=False)
class Connection:
    """One connection of a client; times are those of the event loop."""

    transport: asyncio.Transport | None = None  # None before it is connected
    active_at: float = 0.0  # time of the last activity
    head_since: float | None = None  # when a partial head arrived, or None
    is_detached: bool = False  # whether it is the HTTP library's for good
    is_busy: bool = False  # whether a request is being answered
    is_full: bool = False  # whether the client reads too slowly
    is_stream: bool = False  # whether a NAR streams to it, or will
    sent_bytes: int = 0  # written of streamed NARs
    # Called after a response, with whether the connection stays open.
    when_answered: Callable[[bool], None] | None = None
    when_lost: Callable[[], object] | None = None  # called when it is closed
    held_bytes: int = 0
    unread_bytes: int = 0
    taken: int = -1
    taken_at: float = 0.0

    def progress(self) -> tuple[int, bool]:
        """Return how many bytes the client has read, from an arbitrary origin, and whether more wait."""
        if self.transport is None:
            return 0, False
        waiting = self.transport.get_write_buffer_size()
        connection = self.transport.get_extra_info("socket")
        if _TCP_INFO is not None and connection is not None:
            with suppress(OSError, struct.error):  # another kind of socket, or an old kernel
                info = connection.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_BYTES)
                [acked], [unacked], [unsent] = (
                    each.unpack_from(info) for each in (_ACKED_BYTES, _UNACKED_PACKETS, _UNSENT_BYTES)
                )
                return acked, bool(waiting or unacked or unsent)
        return self.sent_bytes - waiting, waiting > 0

    def cut(self) -> None:
        """Close it now, and have the kernel drop unsent bytes."""
        transport = self.transport
        if transport is None:
            return
        connection = transport.get_extra_info("socket")
        with suppress(OSError, ValueError, AttributeError):  # closed, or not a socket
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            # Not a duplicate, which may be polled; and uvloop's transports cannot shut down reading.
            with socket.socket(fileno=connection.fileno()) as same:
                try:
                    same.shutdown(socket.SHUT_RDWR)
                finally:
                    same.detach()
        transport.abort()


class Connections:
    """All connections, at most ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        # Some remain for fast requests, whatever the others wait for.
        self._most_busy = most - most // 4
        self._busy = 0
        self._held_bytes = 0
        self._unread_bytes = 0
        self._all: set[Connection] = set()
        self._full: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def opened(self, connection: Connection, now: float) -> None:
        """Count a new one; if there are too many, close idle ones, or this one if all are busy."""
        connection.active_at = now
        self._all.add(connection)
        if len(self._all) > self._most:
            self._close_idlest(connection)

    def closed(self, connection: Connection) -> None:
        """Forget one."""
        self._all.discard(connection)
        self.drained(connection)
        self.hold(connection, 0)
        self._set_busy(connection, is_busy=False)
        if connection.when_lost is not None:
            connection.when_lost()
        connection.when_answered = connection.when_lost = None
        connection.transport = None

    def begin(self, connection: Connection) -> bool:
        """Note that a request is being answered; False if too many are."""
        self._set_busy(connection, is_busy=True)
        return self._busy <= self._most_busy

    def end(self, connection: Connection, now: float, *, stays: bool) -> None:
        """Note that a response was written."""
        connection.active_at = now
        self._set_busy(connection, is_busy=False)
        if connection.is_detached:
            self.hold(connection, 0)
        if connection.when_answered is not None:
            connection.when_answered(stays)

    def hold(self, connection: Connection, size: int) -> None:
        """Note how many bytes of a client are held; one with too many is cut off."""
        self._held_bytes += size - connection.held_bytes
        connection.held_bytes = size
        if size > MOST_HELD_OF_ONE_BYTES or (self._held_bytes > MOST_HELD_BYTES and size > _FREE_BYTES):
            fields = {"bytes": size, "of_all_clients": self._held_bytes}
            _log.info("a client sent too much ahead and is cut off", extra={"fields": fields})
            connection.cut()

    def filled(self, connection: Connection, now: float) -> None:
        """Note that a client reads too slowly."""
        connection.is_full = True
        connection.taken_at = now
        self._full[connection] = None
        if not connection.is_stream:
            self._count_unread(connection)

    def drained(self, connection: Connection) -> None:
        """Note that a client has caught up."""
        connection.is_full = False
        self._full.pop(connection, None)
        self._unread_bytes -= connection.unread_bytes
        connection.unread_bytes = 0

    def set_stream(self, connection: Connection, *, is_stream: bool) -> None:
        """Note the start or end of a NAR stream, which ``NarStreams`` bounds."""
        connection.is_stream = is_stream
        if connection.is_full:
            self._unread_bytes -= connection.unread_bytes
            connection.unread_bytes = 0
            if not is_stream:
                self._count_unread(connection)

    def sweep(self, now: float) -> None:
        """Cut stalled connections; to be called every few seconds."""
        late = [one for one in self._all if not one.is_busy and _is_late(one, now)]
        for connection in late:
            connection.cut()
        if late:
            _log.info("requests did not come whole", extra={"fields": {"connections": len(late)}})
        stalled = [one for one in self._all if (one.is_full or one.is_stream) and _is_stalled(one, now)]
        for connection in stalled:
            connection.cut()
        if stalled:
            _log.warning("clients took nothing for minutes", extra={"fields": {"connections": len(stalled)}})

    def _close_idlest(self, newest: Connection) -> None:
        _log.warning("connections at their limit", extra={"fields": {"limit": self._most}})
        idle = (one for one in self._all if not one.is_busy and one is not newest)
        count = max(1, self._most // _SHARE_CLOSED)
        for connection in heapq.nsmallest(count, idle, key=lambda one: one.active_at) or [newest]:
            self._all.discard(connection)  # its transport closes it in the next iteration of the event loop
            connection.cut()

    def _count_unread(self, connection: Connection) -> None:
        if connection.transport is not None:
            waiting = connection.transport.get_write_buffer_size()
            self._unread_bytes += waiting - connection.unread_bytes
            connection.unread_bytes = waiting
        if self._unread_bytes > MOST_UNREAD_BYTES:
            longest = next((one for one in self._full if not one.is_stream), connection)
            fields = {"bytes": longest.unread_bytes, "of_all_clients": self._unread_bytes}
            _log.warning("too much waits for clients that do not read: one is cut", extra={"fields": fields})
            longest.cut()

    def _set_busy(self, connection: Connection, *, is_busy: bool) -> None:
        self._busy += is_busy - connection.is_busy
        connection.is_busy = is_busy


def _is_late(connection: Connection, now: float) -> bool:
    since = connection.active_at if connection.is_detached else connection.head_since
    return since is not None and not connection.is_full and now - since > HEAD_SECONDS


def _is_stalled(connection: Connection, now: float) -> bool:
    taken, is_waiting = connection.progress()
    if taken != connection.taken or not is_waiting:
        connection.taken, connection.taken_at = taken, now
    return now - connection.taken_at > STALL_SECONDS
