"""Runs a program by an argument list, never a shell; its standard error is passed on as it comes.

It does not outlive us: cancelling the wait ends its whole process group.
"""

import asyncio
import os
import re
import shutil
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nixcache_oci.clients.local_store.environment import child_environment
from nixcache_oci.errors import StoreError, UsageError

OnLine = Callable[[str], None]
"""Takes one line of standard error, without its line end; the text is foreign."""

MOST_BYTES: Final = 256 * 1024 * 1024
"""Of standard output: enough for Nix to describe a closure of 300,000 paths."""

_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_PIECE_BYTES = 64 * 1024
_TAIL_LINES = 50
_STATUS_OF_SIGNALS: Final = 128
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    status: int  # 0 for success; below 0 for the signal that ended it
    stdout: bytes  # all of its standard output
    reason: str  # its last error message, in one line


async def run_program(
    name: str,
    arguments: Iterable[str],
    environment: Mapping[str, str],
    on_line: OnLine,
    *,
    choose: Callable[[Mapping[str, str]], dict[str, str]] = child_environment,
    given: bytes = b"",
    most_bytes: int = MOST_BYTES,
    folder: Path | None = None,
) -> Ended:
    """Run a program until it ends, however long that takes.

    Args:
        name: looked up in the environment's PATH.
        arguments: passed as they are.
        environment: of this process.
        on_line: gets its standard error.
        choose: chooses its environment from ours.
        given: a few bytes for its standard input.
        most_bytes: of standard output.
        folder: to run it in; None for the current one.

    Raises:
        UsageError: there is no such program.
        StoreError: it wrote more than ``most_bytes``.
    """
    # In its own session, so that Ctrl-C reaches only us, and we end it in order.
    process = await asyncio.create_subprocess_exec(
        _find_program(name, environment),
        *arguments,
        cwd=folder,
        env=choose(environment),
        stdin=PIPE if given else DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async with asyncio.TaskGroup() as group:
            if process.stdin is not None:
                group.create_task(_give(process.stdin, given))
            stdout = group.create_task(_read(process.stdout, name, most_bytes))
            group.create_task(_pass_on(process.stderr, on_line, tail))
        status = await process.wait()
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        if process.returncode is None:
            await _end(process)
    return Ended(status, stdout.result(), find_reason(tail))


async def run_in_foreground(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a user's command with our own terminal and streams, and return its status as a shell reports it.

    If the wait is cancelled, it is told to end, and waited for. Raises UsageError if it cannot be started.
    """
    program = shutil.which(command[0], path=environment.get("PATH", os.defpath))
    if program is None:
        raise UsageError(f"{command[0]}: no such program in PATH")
    try:
        process = await asyncio.create_subprocess_exec(program, *command[1:], env=dict(environment))
    except OSError as error:
        raise UsageError(f"{command[0]}: cannot be started: {error.strerror}") from None
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    return status if status >= 0 else _STATUS_OF_SIGNALS - status


def _find_program(name: str, environment: Mapping[str, str]) -> Path:
    path = shutil.which(name, path=environment.get("PATH", os.defpath))
    if path is None:
        raise UsageError(
            f"{name}: no such program in PATH; install Nix (https://nixos.org/download), or add the folder "
            "of its programs to PATH, often /nix/var/nix/profiles/default/bin"
        )
    return Path(path).absolute()  # PATH may have relative folders, and the program may run in another


def ignore_line(_line: str) -> None:
    """Drop a line of a program whose failure does not matter."""


def without_colours(line: str) -> str:
    """Remove the colours from a line of Nix."""
    return _COLOURS.sub("", line)


def find_reason(lines: Iterable[str]) -> str:
    """Find the line of Nix's output that says why: the last error with a text, else the last line.

    Newer versions print a trace between ``error:`` and the error itself.
    """
    plain = [line for line in (without_colours(line).strip() for line in lines) if line]
    errors = [line.removeprefix("error: ") for line in plain if line.startswith("error: ")]
    return (errors or plain or ["it did not say why"])[-1].rstrip(";:")


async def _give(stream: asyncio.StreamWriter, given: bytes) -> None:
    with suppress(ConnectionError):  # it need not read its input
        stream.write(given)
        await stream.drain()
    stream.close()


async def _read(stream: asyncio.StreamReader | None, name: str, most_bytes: int) -> bytes:
    content = bytearray()
    while stream is not None and (piece := await stream.read(_PIECE_BYTES)):
        content += piece
        if len(content) > most_bytes:
            raise StoreError(f"{name}: wrote more than {most_bytes} bytes to standard output")
    return bytes(content)


async def _pass_on(stream: asyncio.StreamReader | None, on_line: OnLine, tail: deque[str]) -> None:
    def show(line: bytes) -> None:
        text = line.decode(errors="replace").removesuffix("\r")
        tail.append(text)
        on_line(text)

    rest = b""
    while stream is not None and (piece := await stream.read(_PIECE_BYTES)):
        # A carriage return ends a line too, as it may for whoever reads our output.
        *lines, rest = _LINE_END.split(rest + piece)
        for line in lines:
            show(line)
        if len(rest) > _PIECE_BYTES:
            show(rest)
            rest = b""
    if rest:
        show(rest)


async def _end(process: Process) -> None:
    """Terminate the process group, then kill it.

    Its pipes are drained meanwhile, because a program that cannot write does not end. A descendant may keep
    them open forever, so draining has the same time limit.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GRACE):
                await asyncio.gather(_discard(process.stdout), _discard(process.stderr), process.wait())
                return


async def _discard(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and await stream.read(_PIECE_BYTES):
        pass
