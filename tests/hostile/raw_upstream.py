"""An upstream that says any bytes whatever, by the target that it is asked for."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress


@contextmanager
def raw_upstream(answers: Mapping[str, bytes], seen: Callable[[str], object]) -> Iterator[str]:
    """Answer each connection's first request, then hang up; gives the base URL.

    Args:
        answers: whole answers by target, such as ``/nar/x.nar``; anything else is 404.
        seen: is told each request's head.
    """

    def say(connection: socket.socket) -> None:
        head = _read_head(connection)
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
        if not _read_head(connection):
            return
        number = len(taken)
        taken.append(0)
        while True:
            connection.sendall(piece)
            taken[number] += len(piece)

    with listening(say) as url:
        yield url, taken


def _read_head(connection: socket.socket) -> bytes:
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
