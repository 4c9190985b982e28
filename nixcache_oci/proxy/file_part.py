"""Parts of a local file, hashed on the thread that reads them, and sent without passing through this process.

What is sent was read a moment before, and comes out of the kernel's memory, from which it was read.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from aiohttp import web

from nixcache_oci.clients.one_ahead import one_ahead
from nixcache_oci.clients.repository import BlobFile
from nixcache_oci.errors import RegistryError

# So much is read and hashed while it lies in the processor's cache, and so much with one change of threads.
_READ_BYTES: Final = 256 * 1024
_PART_BYTES: Final = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes of a file.

    Attributes:
        file: where they are.
        start: offset of the first one.
        end: offset behind the last one.
    """

    file: BlobFile
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def read_parts(file: BlobFile, size: int, watch: Callable[[bytes], None]) -> AsyncGenerator[FilePart]:
    """Yield the parts of a file that were read, and shown to a function in their order, on a thread.

    Raises:
        RegistryError: it has fewer bytes than ``size``, or cannot be read.
    """

    def read(part: FilePart) -> FilePart:
        for place in range(part.start, part.end, _READ_BYTES):
            watch(file.read(place, min(place + _READ_BYTES, part.end)))
        return part

    places = range(0, size, _PART_BYTES)
    parts = (FilePart(file, place, min(place + _PART_BYTES, size)) for place in places)
    return one_ahead(partial(read, part) for part in parts)


async def send_part(part: FilePart, request: web.Request, response: web.StreamResponse) -> None:
    """Send bytes behind all that was written; returns when the kernel has them.

    Args:
        part: what to send.
        request: of the client.
        response: to it, whose head was written.

    Raises:
        ConnectionError: the client is gone.
        RegistryError: the file has become shorter.
    """
    writer, transport = await response.prepare(request), request.transport
    if writer is None or transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    # What was written comes first.
    writer.send_headers()
    transport.set_write_buffer_limits(0)
    try:
        await writer.drain()
    finally:
        transport.set_write_buffer_limits()
    # A number of our own: the event loop watches the other one, and may close it meanwhile.
    descriptor = os.dup(transport.get_extra_info("socket").fileno())
    try:
        sent = part.start
        while sent < part.end:
            try:
                count = os.sendfile(descriptor, part.file.fileno(), sent, part.end - sent)
            except BlockingIOError:
                await _writable(descriptor)
            else:
                if not count:
                    raise RegistryError(f"a file ended at byte {sent} while it was sent")
                sent += count
    finally:
        os.close(descriptor)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(descriptor)
