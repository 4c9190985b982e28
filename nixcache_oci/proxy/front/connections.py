"""The connections of clients, in total: how many there are, how long they may stand still, what they hold.

Each bound is one of the whole process. Where it is exceeded, the connection goes that has been of no use for
the longest time; clients of HTTP open another one when they need it.
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
"""How long a connection may be idle at the least: as long as the HTTP library allows."""

HEAD_SECONDS: Final = 30.0
"""How long the head of a request may be on its way; for a client of odd requests, how long it may be idle."""

STALL_SECONDS: Final = 300.0
"""How long a client may take no byte of what it asked for; slow ones that take some may go on for ever."""

MOST_HELD_BYTES: Final = 32 * 1024 * 1024
"""What all clients together may send ahead, or begin and not end, before one that does it is cut off."""

MOST_UNREAD_BYTES: Final = 96 * 1024 * 1024
"""What may wait for clients that do not read, NARs that stream left aside; then the longest wait is cut."""

MOST_HELD_OF_ONE_BYTES: Final = 512 * 1024
"""What one client may send ahead, as a body among it, which nobody here reads."""

# A head and a request or two: who sends no more than that is never cut off for it.
_FREE_BYTES: Final = 4 * 1024
# As many are closed at once, for looking at all of them takes its time.
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
    """One connection of a client; times are those of the event loop.

    Attributes:
        transport: None before it is made.
        active_at: when it was last of use.
        head_since: since when the beginning of a head is here, or None.
        is_detached: whether it is the HTTP library's for good.
        is_busy: whether a request is being answered.
        is_full: whether the client does not read what it asked for, or not as fast as it comes.
        is_stream: whether a NAR streams to it, or will.
        sent_bytes: what was written of NARs that stream.
        when_answered: is told that an answer is written, and whether the connection stays.
        when_lost: is told that it is no more.
    """

    transport: asyncio.Transport | None = None
    active_at: float = 0.0
    head_since: float | None = None
    is_detached: bool = False
    is_busy: bool = False
    is_full: bool = False
    is_stream: bool = False
    sent_bytes: int = 0
    when_answered: Callable[[bool], None] | None = None
    when_lost: Callable[[], object] | None = None
    held_bytes: int = 0
    unread_bytes: int = 0
    taken: int = -1
    taken_at: float = 0.0

    def progress(self) -> tuple[int, bool]:
        """Tell how many bytes the client has taken, counted from anywhere, and whether more wait for it."""
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
        """End it now, and have the kernel drop what waits."""
        transport = self.transport
        if transport is None:
            return
        connection = transport.get_extra_info("socket")
        with suppress(OSError, ValueError, AttributeError):  # it is closed, or is none
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            # A number of our own may be waited for; and no transport of uvloop can shut down reading as well.
            with socket.socket(fileno=connection.fileno()) as same:
                try:
                    same.shutdown(socket.SHUT_RDWR)
                finally:
                    same.detach()
        transport.abort()


class Connections:
    """All connections.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # Some remain for requests that take no time, whatever the others wait for.
        self._most_busy = most - most // 4
        self._busy = 0
        self._held_bytes = 0
        self._unread_bytes = 0
        self._all: set[Connection] = set()
        self._full: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._all)

    def opened(self, connection: Connection, now: float) -> None:
        """Count a new one; where there are too many, others are closed, or this one if all are at work."""
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
        """Note that a request is being answered; False where too many are."""
        self._set_busy(connection, is_busy=True)
        return self._busy <= self._most_busy

    def end(self, connection: Connection, now: float, *, stays: bool) -> None:
        """Note that an answer was written."""
        connection.active_at = now
        self._set_busy(connection, is_busy=False)
        if connection.is_detached:
            self.hold(connection, 0)
        if connection.when_answered is not None:
            connection.when_answered(stays)

    def hold(self, connection: Connection, size: int) -> None:
        """Note how many bytes are held of what a client sent; one that has too many is cut."""
        self._held_bytes += size - connection.held_bytes
        connection.held_bytes = size
        if size > MOST_HELD_OF_ONE_BYTES or (self._held_bytes > MOST_HELD_BYTES and size > _FREE_BYTES):
            fields = {"bytes": size, "of_all_clients": self._held_bytes}
            _log.info("a client sent too much ahead and is cut off", extra={"fields": fields})
            connection.cut()

    def filled(self, connection: Connection, now: float) -> None:
        """Note that a client does not read, or not as fast as bytes come."""
        connection.is_full = True
        connection.taken_at = now
        self._full[connection] = None
        if not connection.is_stream:
            self._count_unread(connection)

    def drained(self, connection: Connection) -> None:
        """Note that a client has read what was there."""
        connection.is_full = False
        self._full.pop(connection, None)
        self._unread_bytes -= connection.unread_bytes
        connection.unread_bytes = 0

    def set_stream(self, connection: Connection, *, is_stream: bool) -> None:
        """Note that a NAR streams, which something else bounds, or that it is over."""
        connection.is_stream = is_stream
        if connection.is_full:
            self._unread_bytes -= connection.unread_bytes
            connection.unread_bytes = 0
            if not is_stream:
                self._count_unread(connection)

    def sweep(self, now: float) -> None:
        """End what has stood still for too long; to be called every few seconds."""
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
            self._all.discard(connection)  # its transport ends it in the event loop's next turn
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
