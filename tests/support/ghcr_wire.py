"""What goes over a connection: answers as plain data, and how they are sent, with what is to go wrong."""

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from aiohttp import web

from tests.support.ghcr_faults import Fault, Faults, RequestRecord

_CHUNK = 256 * 1024  # bytes
_JUNK = b"<html><body>This is not what was asked for.</body></html>\n"


@dataclass(frozen=True, slots=True)
class FilePart:
    """The bytes of a file from ``start`` to before ``end``."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer as plain data."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FilePart = b""

    @property
    def size(self) -> int:
        return self.body.end - self.body.start if isinstance(self.body, FilePart) else len(self.body)


def json_answer(status: int, document: object, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(
        status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(document).encode()
    )


def oci_error(
    status: int,
    code: str,
    message: str,
    headers: Mapping[str, str] | None = None,
    *,
    detail: object = None,
) -> Answer:
    """Render an error as the OCI distribution specification has it ("Error codes")."""
    error = {"code": code, "message": message, **({} if detail is None else {"detail": detail})}
    return json_answer(status, {"errors": [error]}, headers)


_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def blob_answer(path: Path, headers: dict[str, str], range_header: str, *, open_ranges: str) -> Answer:
    """Answer a GET of a file; ``open_ranges`` is explained at ``Manners``."""
    size = path.stat().st_size
    match = _RANGE.fullmatch(range_header)
    if match is None or (not match[2] and open_ranges == "ignore"):
        return Answer(200, headers, FilePart(path, 0, size))
    start = int(match[1])
    end = min(int(match[2]) + 1, size) if match[2] else size
    if start >= end or (not match[2] and open_ranges == "refuse"):
        return Answer(416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return Answer(206, headers, FilePart(path, start, end))


class Pace:
    """Keeps a stream to so many bytes a second."""

    def __init__(self, bandwidth: int | None) -> None:
        self._bandwidth = bandwidth
        self._start = asyncio.get_running_loop().time()
        self._count = 0
        self.chunk = _CHUNK if bandwidth is None else max(1, min(_CHUNK, bandwidth // 20))

    async def wait_for(self, count: int) -> None:
        """Wait until so many more bytes may have passed."""
        if self._bandwidth is not None:
            self._count += count
            due = self._start + self._count / self._bandwidth
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))


def disconnect(request: web.BaseRequest, *, reset: bool = False) -> web.Response:
    """Close the connection; the response that the server library wants is sent nowhere."""
    transport = request.transport
    if transport is not None:
        if reset:
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            transport.close()
    return web.Response()


async def send(
    request: web.BaseRequest,
    record: RequestRecord,
    answer: Answer,
    fault: Fault | None,
    *,
    faults: Faults,
    bandwidth: int | None,
) -> web.StreamResponse:
    """Send an answer, harmed as the fault says."""
    kind = fault.kind if fault else None
    after = fault.after if fault else 0
    if kind == "garbage":
        answer = replace(answer, status=200, body=(fault and fault.body) or _JUNK)
    size = min(after, answer.size) if kind == "truncated" else answer.size
    if kind == "stall" and (request.method == "HEAD" or not size):
        await faults.stall(request.transport, faults.release_count)  # there is nothing to stop in later
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = size
    await response.prepare(request)
    record.status = answer.status
    if request.method == "HEAD":
        return response
    body = answer.body
    stop = min(after, size) if kind in {"cut", "stall"} else size
    if isinstance(body, FilePart) and stop == size and kind != "wrong_byte" and bandwidth is None:
        await _send_file(request, record, replace(body, end=body.start + size))
        return response
    pace = Pace(bandwidth)
    # Before the first byte: a client may call for the release as soon as it has what was promised.
    releases = faults.release_count
    pieces = _pieces(body, 0, stop, pace.chunk)
    if kind == "wrong_byte":
        pieces = _with_wrong_byte(pieces, after)
    await _send_pieces(response, record, pieces, pace)
    if kind == "cut":
        disconnect(request)
    elif kind == "stall":
        await faults.stall(request.transport, releases)
        await _send_pieces(response, record, _pieces(body, stop, size, pace.chunk), pace)
    return response


async def _send_file(request: web.BaseRequest, record: RequestRecord, part: FilePart) -> None:
    """Let the kernel copy: a body of 1 GB costs no memory and hardly any time of this interpreter."""
    if part.start == part.end:
        return
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    with part.path.open("rb") as file:
        await asyncio.get_running_loop().sendfile(transport, file, part.start, part.end - part.start)
    record.bytes_sent += part.end - part.start


async def _send_pieces(
    response: web.StreamResponse, record: RequestRecord, pieces: Iterable[bytes], pace: Pace
) -> None:
    for piece in pieces:
        await pace.wait_for(len(piece))
        await response.write(piece)
        record.bytes_sent += len(piece)


def _with_wrong_byte(pieces: Iterable[bytes], offset: int) -> Iterator[bytes]:
    position = 0
    for piece in pieces:
        index = offset - position
        position += len(piece)
        if 0 <= index < len(piece):
            yield piece[:index] + bytes([piece[index] ^ 0xFF]) + piece[index + 1 :]
        else:
            yield piece


def _pieces(body: bytes | FilePart, start: int, stop: int, chunk: int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        for position in range(start, stop, chunk):
            yield body[position : min(position + chunk, stop)]
        return
    with body.path.open("rb") as file:
        file.seek(body.start + start)
        left = stop - start
        while left and (piece := file.read(min(chunk, left))):
            left -= len(piece)
            yield piece
