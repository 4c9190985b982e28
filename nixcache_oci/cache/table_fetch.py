"""Fetching tables from the repository to disk, verified and inflated on the way."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager, closing, nullcontext
from typing import Final

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.cache.progress import SILENT, Stage
from nixcache_oci.cache.table import MAX_TABLE_BYTES
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.cache.table_file import TableFile, TableFileWriter
from nixcache_oci.cache.version1 import MAX_DOCUMENT_BYTES, Version1, parse_version1
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import TABLE_HEAD_SECONDS, open_resuming, read_blob
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.digest import Digest
from nixcache_oci.wording import counted

_log = logging.getLogger(__name__)

_SMALL_BYTES: Final = 512 * 1024
"""A blob of this size is held in memory until its turn comes: those of a thousand paths are smaller."""


async def fetch_table(
    repository: Repository,
    folder: IndexFolder,
    table: Digest,
    budget: TableBudget | None = None,
    stage: Stage = SILENT,
    turn: AbstractAsyncContextManager[object] | None = None,
) -> TableFile:
    """Fetch the table of a segment.

    Args:
        repository: of the cache.
        folder: for tables.
        table: digest of the blob.
        budget: of all tables.
        stage: receives the size of each chunk.
        turn: entered to inflate, which takes up to 8 MiB of memory; a small blob is fetched whole before, and
            of a large one no more than a chunk is held.

    Raises:
        LimitError: over the budget.
        RegistryError: it could not be fetched.
        OSError: no space on disk or in memory.
        DigestError: it does not match its digest.
        FormatError: it is not a table.
    """
    budget = budget or TableBudget()
    budget.check()
    writer = folder.table_writer(table, budget)
    try:
        async with open_resuming(repository, table, head_seconds=TABLE_HEAD_SECONDS) as blob:
            if blob.size > MAX_TABLE_BYTES:
                raise FormatError(
                    f"table {table}: {counted(blob.size, 'byte')}, over the limit of {MAX_TABLE_BYTES}"
                )
            if blob.size > _SMALL_BYTES:
                async with turn or nullcontext():
                    async for chunk in blob.chunks:
                        await run_in_thread(writer.write, chunk)
                        stage.advance(size=len(chunk))
                    return await run_in_thread(writer.finish, table)
            content = b"".join([chunk async for chunk in blob.chunks])
        stage.advance(size=len(content))
        async with turn or nullcontext():
            return await run_in_thread(_write, writer, table, content)
    finally:
        await run_in_thread(writer.close)


def keep_table(folder: IndexFolder, table: Digest, content: bytes) -> TableFile:
    """Store a table that was just pushed, compressed, as if it had been fetched; blocks.

    Raises:
        OSError: no space on disk or in memory.
    """
    with closing(folder.table_writer(table)) as writer:
        return _write(writer, table, content)


def _write(writer: TableFileWriter, table: Digest, content: bytes) -> TableFile:
    writer.write(content)
    return writer.finish(table)


async def fetch_version1(
    repository: Repository,
    folder: IndexFolder,
    document: Digest,
    budget: TableBudget | None = None,
    stage: Stage = SILENT,
) -> TableFile:
    """Fetch the document of a version 1 cache, and store it as a table; errors as in ``fetch_table``."""
    budget = budget or TableBudget()
    budget.check()
    content = await read_blob(repository, document, MAX_DOCUMENT_BYTES, head_seconds=TABLE_HEAD_SECONDS)
    budget.receive(len(content))
    stage.advance(size=len(content))
    version1 = await asyncio.to_thread(parse_version1, content)
    if version1.skipped:
        hash_part, reason = version1.skipped[0]
        fields = {"count": version1.skipped_count, "first": hash_part, "reason": reason}
        _log.warning("entries skipped", extra={"fields": fields})
    return await run_in_thread(_keep, folder.table_writer(document, budget), version1)


def _keep(writer: TableFileWriter, version1: Version1) -> TableFile:
    with closing(writer):
        for stanza in version1.text():
            writer.write_text(stanza)
        return writer.finish(None)
