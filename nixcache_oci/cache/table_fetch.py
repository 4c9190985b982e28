"""Fetching tables: from the repository onto the disk, checked and inflated on the way."""

import asyncio
import logging

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.cache.table import MAX_TABLE_BYTES, render_table
from nixcache_oci.cache.table_file import TableFile
from nixcache_oci.cache.version1 import MAX_DOCUMENT_BYTES, parse_version1
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import open_resuming, read_blob
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest

_log = logging.getLogger(__name__)


async def fetch_table(repository: Repository, folder: IndexFolder, table: Digest) -> TableFile:
    """Fetch the table of a segment; memory use is one chunk.

    Raises:
        RegistryError: it could not be fetched.
        OSError: neither disk nor memory takes it.
        DigestError: it is not what its digest says.
        FormatError: it is no table.
    """
    writer = folder.table_writer(table)
    try:
        async with open_resuming(repository, table) as blob:
            if blob.size > MAX_TABLE_BYTES:
                raise FormatError(f"table {table}: {blob.size} bytes, over the limit of {MAX_TABLE_BYTES}")
            async for chunk in blob.chunks:
                await run_in_thread(writer.write, chunk)
        return await run_in_thread(writer.finish, table)
    finally:
        await run_in_thread(writer.close)


def keep_table(folder: IndexFolder, table: Digest, content: bytes) -> TableFile:
    """Put the table of a segment on disk that was just pushed, as if it had been fetched; blocks.

    Args:
        folder: where to.
        table: its digest.
        content: compressed.

    Raises:
        OSError: neither disk nor memory takes it.
        DigestError: it is not what its digest says.
        FormatError: it is no table.
    """
    writer = folder.table_writer(table)
    try:
        writer.write(content)
        return writer.finish(table)
    finally:
        writer.close()


async def fetch_version1(repository: Repository, folder: IndexFolder, document: Digest) -> TableFile:
    """Fetch the document of a version 1 cache, and keep it as a table.

    Raises:
        RegistryError: it could not be fetched.
        OSError: neither disk nor memory takes it.
        DigestError: it is not what its digest says.
        FormatError: it is no such document.
    """
    content = await read_blob(repository, document, MAX_DOCUMENT_BYTES)
    return await asyncio.to_thread(_convert, folder, document, content)


def _convert(folder: IndexFolder, document: Digest, content: bytearray) -> TableFile:
    version1 = parse_version1(content)
    for hash_part, reason in version1.skipped:
        _log.warning("entry skipped", extra={"fields": {"hash_part": hash_part, "reason": reason}})
    text = render_table(version1.table, limit=MAX_DOCUMENT_BYTES)
    writer = folder.table_writer(document)
    try:
        writer.write_text(text)
        return writer.finish(Digest.of(text))
    finally:
        writer.close()
