"""A client that says any bytes whatever, and reads answers as strictly as it can."""

import re
import select
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

_SECONDS: Final = 20.0  # of silence: what no answer takes
_QUIET_SECONDS: Final = 0.02
_HEAD_END: Final = b"\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"HTTP/(?:1\.[01]|0\.9) ([1-5][0-9]{2}) [\t\x20-\x7e]*")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\t\x20-\x7e]*)")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]+)\r\n")
_NEXT: Final = b"HTTP/"
_BODILESS: Final = frozenset({204, 304})

OUR_HEADERS: Final = frozenset(
    {
        *("accept-ranges", "allow", "connection", "content-length", "content-range", "content-type", "date"),
        *("server", "transfer-encoding", "cache-control"),
        *("cross-origin-resource-policy", "x-content-type-options"),
    }
)
"""Every header that the proxy sends: any other was put there by a stranger."""


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """One answer.

    Attributes:
        status: of HTTP.
        headers: by name in lower case.
        body: without framing; empty where it belongs to a HEAD.
        is_whole: whether it did not end early.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool = True


def read_answers(received: bytes) -> list[RawAnswer]:
    """Read all that a server said on a connection; the last answer may be cut.

    Raises:
        AssertionError: it is not HTTP, or has a header that is none of ours, or one header twice.
    """
    answers: list[RawAnswer] = []
    rest = received
    while rest:
        head, end, rest = rest.partition(_HEAD_END)
        if not end:
            assert _NEXT.startswith(head[: len(_NEXT)]) or head.startswith(_NEXT), f"not HTTP: {head[:200]!r}"
            break
        status, headers = _read_head(head)
        body, rest, is_whole = _read_body(status, headers, rest)
        answers.append(RawAnswer(status, headers, body, is_whole))
    return answers


def converse(host: str, pieces: Iterable[bytes], *, answers: int = 0) -> list[RawAnswer]:
    """Say the pieces one after another, then no more, and read until the server ends the connection.

    Args:
        host: ``host:port``.
        pieces: each goes out by itself.
        answers: how many to wait for before the client ends its side: a server may drop what it has not said
            by then.
    """
    with connect(host) as connection:
        with suppress(ConnectionError):  # it closed already; what it said before that is still to be read
            for piece in pieces:
                connection.sendall(piece)
        received = _read_before_the_end(connection, answers)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        return read_answers(received + read_to_end(connection))


def connect(host: str) -> socket.socket:
    """Connect to ``host:port``."""
    address, _, port = host.rpartition(":")
    connection = socket.create_connection((address, int(port)), timeout=_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """Read until the server ends the connection, in whatever way."""
    received = bytearray()
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return bytes(received)


def _read_before_the_end(connection: socket.socket, answers: int) -> bytes:
    quiet = _QUIET_SECONDS if answers == 0 else _QUIET_SECONDS / 5
    received = bytearray()
    waiting = select.poll()  # unlike select(), it takes any number of a file
    waiting.register(connection, select.POLLIN)
    with suppress(ConnectionError):
        while not _has(received, answers) or waiting.poll(quiet * 1000):
            piece = connection.recv(65536)
            if not piece:
                break
            received += piece
    return bytes(received)


def _has(received: bytearray, answers: int) -> bool:
    if received.count(_NEXT) < answers:
        return False
    found = read_answers(bytes(received))
    return len(found) >= answers and (not found or found[-1].is_whole)


def _read_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    assert status is not None, f"no status line: {first[:200]!r}"
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        assert field is not None, f"no header: {line[:200]!r}"
        name = field[1].decode().lower()
        assert name in OUR_HEADERS, f"a header that nobody here sends: {line[:200]!r}"
        assert name not in headers, f"a header twice: {line[:200]!r}"
        headers[name] = field[2].decode()
    return int(status[1]), headers


def _read_body(status: int, headers: dict[str, str], rest: bytes) -> tuple[bytes, bytes, bool]:
    """Give the body, what follows it, and whether it is whole."""
    if status < 200 or status in _BODILESS:
        return b"", rest, True
    assert not {"content-length", "transfer-encoding"} <= headers.keys(), "framed twice"
    if headers.get("transfer-encoding") == "chunked":
        return _read_chunks(rest)
    if "content-length" not in headers:
        return rest, b"", True
    size = int(headers["content-length"])
    if not rest or rest.startswith(_NEXT):  # the answer to a HEAD, or cut before its first byte
        return b"", rest, True
    return rest[:size], rest[size:], len(rest) >= size


def _read_chunks(rest: bytes) -> tuple[bytes, bytes, bool]:
    body = b""
    while chunk := _CHUNK.match(rest):
        size = int(chunk[1], 16)
        piece, end = rest[chunk.end() :][:size], rest[chunk.end() + size :][:2]
        if end != b"\r\n":
            assert b"\r\n".startswith(end), "a chunk that does not end"
            return body + piece, b"", False
        body += piece
        rest = rest[chunk.end() + size + 2 :]
        if not size:
            return body, rest, True
    assert len(rest) < 32, f"no chunk: {rest[:200]!r}"
    return body, b"", False


@contextmanager
def raw_upstream(answers: Mapping[str, bytes], seen: Callable[[str], object]) -> Iterator[str]:
    """Answer each connection's first request, then hang up; gives the base URL.

    Args:
        answers: whole answers by target, such as ``/nar/x.nar``; anything else is 404.
        seen: is told each request's head.
    """

    def say(connection: socket.socket) -> None:
        head = _read_request(connection)
        if not head:
            return
        seen(head.decode("latin-1"))
        target = head.split(b" ")[1].decode("latin-1")
        missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(answers.get(target, missing))

    with listening(say) as url:
        yield url


@contextmanager
def flood(piece: bytes) -> Iterator[tuple[str, list[int]]]:
    """Answer each request by the same bytes again and again, as fast as they are taken.

    Gives the base URL, and the bytes that each connection took.
    """
    taken: list[int] = []

    def say(connection: socket.socket) -> None:
        if not _read_request(connection):
            return
        number = len(taken)
        taken.append(0)
        while True:
            connection.sendall(piece)
            taken[number] += len(piece)

    with listening(say) as url:
        yield url, taken


def _read_request(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
        head += piece
    return head


@contextmanager
def listening(say: Callable[[socket.socket], None]) -> Iterator[str]:
    """Hold a conversation on each connection; gives the base URL."""

    class Talk(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):
                say(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Talk) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def whole(body: bytes, *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """Write an answer in right framing, with further fields as they are."""
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 " + status, length, b"Connection: close", *fields, b"", body])
