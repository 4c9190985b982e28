"""Standard streams that can always be written to, so that no work ends for want of a log.

A closed one is opened on /dev/null: else its number goes to the next file or socket, and messages into that;
libuv aborts if it gets one. What a full disk does not take is left out and remembered; a reader who goes away
(``| head``) still ends the program.
"""

import io
import os
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
# A closed standard output is opened to read only, so that what is written there is known to be lost.
_FLAGS: Final = {_STDIN: os.O_RDONLY, _STDOUT: os.O_RDONLY, _STDERR: os.O_WRONLY}


class _Lossy(io.FileIO):
    """Writes to a descriptor, and leaves out what cannot be written, for its first ``error``."""

    def __init__(self, descriptor: int, *, ends_with_reader: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.error: OSError | None = None
        self._ends_with_reader = ends_with_reader

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if self._ends_with_reader and isinstance(error, BrokenPipeError):
                raise
            self.error = self.error or error
        return memoryview(data).nbytes


class StandardStreams:
    """Takes the place of ``sys.stdout`` and ``sys.stderr``, unless something else has."""

    def __init__(self) -> None:
        self._stdout: _Lossy | None = None
        # A test may have put streams of its own there, without descriptors.
        if sys.stdout is not sys.__stdout__ or sys.stderr is not sys.__stderr__:
            return
        for descriptor, flags in _FLAGS.items():
            _open_if_closed(descriptor, flags)
        if sys.stdin is None:
            sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115  for all of the run
        self._stdout = _Lossy(_STDOUT, ends_with_reader=True)
        sys.stdout = _wrap(self._stdout, sys.stdout)
        sys.stderr = _wrap(_Lossy(_STDERR, ends_with_reader=False), sys.stderr, is_line_buffered=True)

    def find_loss(self) -> str | None:
        """Write what is still buffered, and say why some of the output is lost, if it is.

        Raises:
            BrokenPipeError: the pipe is closed.
        """
        sys.stdout.flush()
        error = self._stdout.error if self._stdout is not None else None
        return f"standard output: {error.strerror}; part of the output is lost" if error is not None else None


def _open_if_closed(descriptor: int, flags: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        # The lowest number that is free is this one: those below are open.
        os.open(os.devnull, flags)


def _wrap(raw: _Lossy, former: TextIO | None, *, is_line_buffered: bool = False) -> TextIO:
    is_terminal = raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=former.encoding if former is not None else "utf-8",
        errors="backslashreplace",  # a letter that the terminal does not know is no reason to end
        line_buffering=is_terminal or is_line_buffered,
        write_through=bool(getattr(former, "write_through", False)),
    )
