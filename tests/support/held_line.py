"""A line on which some requests never arrive: TCP passed on both ways, but for what the test holds back."""

import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self

_PIECE_BYTES = 64 * 1024


class HeldLine:
    """Listens on a free loopback port, and passes everything on to another one.

    Args:
        target: ``host:port`` of the server behind it.
        pattern: a connection ends to be passed on with the piece that this is found in.

    Attributes:
        held: is set when something is held back.
    """

    def __init__(self, target: str, pattern: bytes) -> None:
        host, _, port = target.partition(":")
        self._target = (host, int(port))
        self._pattern = re.compile(pattern)
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.held = threading.Event()

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would not wake the threads.
        for one in (self._listening, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listening, *self._sockets):
            one.close()

    @property
    def host(self) -> str:
        return "{}:{}".format(*self._listening.getsockname())

    def _start(self, job: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=job, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # it was shut down
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                self._start(self._pass_on, client, server, self._pattern)
                self._start(self._pass_on, server, client, None)

    def _pass_on(self, source: socket.socket, sink: socket.socket, pattern: re.Pattern[bytes] | None) -> None:
        is_held = False
        with suppress(OSError):
            while piece := source.recv(_PIECE_BYTES):
                is_held = is_held or (pattern is not None and pattern.search(piece) is not None)
                if is_held:
                    self.held.set()
                else:
                    sink.sendall(piece)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
