"""How much may come before an answer begins: interim answers (1xx), and the head itself.

aiohttp limits single fields of a head, and skips any number of interim answers. A server that sends those
without end would keep the event loop busy, so the bytes are looked at before aiohttp's parser sees them.

Source: RFC 9112 section 4 (status line), RFC 9110 section 15.2 (interim answers).
"""

import asyncio
import re
from typing import Final

import aiohttp

MOST_INTERIM_ANSWERS: Final = 8
MOST_HEAD_BYTES: Final = 64 * 1024  # of all interim answers and the final head together

# As aiohttp's parser reads them: a line may end without its CR.
_END: Final = re.compile(rb"\n\r?\n")
_LONGEST_END: Final = 3
# Anything else may be an interim answer in disguise, and stays counted.
_FINAL: Final = re.compile(rb"[\r\n]*HTTP/[0-9]\.[0-9] (?:101|[2-9][0-9][0-9])(?![0-9])")


class HeadError(aiohttp.ClientError):
    """An answer's head did not end within what is allowed."""


class HeadMeter:
    """Counts what comes before the end of one final head. No I/O."""

    def __init__(self) -> None:
        self._unread = bytearray()  # of the head that has not ended yet
        self._searched = 0
        self._former_bytes = 0  # of heads that have ended
        self._interim = 0

    def feed(self, data: bytes) -> bool:
        """Take the next bytes; tells whether the final head has ended in them.

        Raises:
            HeadError: too many interim answers, or too many bytes.
        """
        room = MOST_HEAD_BYTES + 1 - self._former_bytes - len(self._unread)
        self._unread += data[:room]
        while match := _END.search(self._unread, max(0, self._searched - _LONGEST_END + 1)):
            if _FINAL.match(self._unread):
                return True
            self._interim += 1
            if self._interim > MOST_INTERIM_ANSWERS:
                raise HeadError(f"more than {MOST_INTERIM_ANSWERS} interim answers (1xx)")
            self._former_bytes += match.end()
            del self._unread[: match.end()]
            self._searched = 0
        self._searched = len(self._unread)
        if self._former_bytes + len(self._unread) > MOST_HEAD_BYTES:
            raise HeadError(f"the answer's head has over {MOST_HEAD_BYTES} bytes")
        return False


class HeadGuard(asyncio.Protocol):
    """Stands between a connection and aiohttp's protocol until the final head has come.

    Args:
        transport: the connection.
        protocol: aiohttp's.
    """

    def __init__(self, transport: asyncio.Transport, protocol: aiohttp.client_proto.ResponseHandler) -> None:
        self._transport = transport
        self._protocol = protocol
        self._meter = HeadMeter()
        transport.set_protocol(self)

    def remove(self) -> None:
        """Let bytes go straight to aiohttp again."""
        if self._transport.get_protocol() is self and not self._transport.is_closing():
            self._transport.set_protocol(self._protocol)

    def data_received(self, data: bytes) -> None:
        """Count bytes before they are parsed."""
        try:
            has_ended = self._meter.feed(data)
        except HeadError as error:
            self._protocol.set_exception(error)
            self._transport.abort()
            return
        if has_ended:
            self.remove()
        self._protocol.data_received(data)

    def eof_received(self) -> None:
        """Pass on."""
        self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on."""
        self._protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._protocol.resume_writing()
