"""Fetching tables: from the repository onto the disk, checked and inflated on the way."""

import asyncio
import logging

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


async def fetch_table(
    repository: Repository,
    folder: IndexFolder,
    table: Digest,
    budget: TableBudget | None = None,
    stage: Stage = SILENT,
) -> TableFile:
    """Fetch the table of a segment; memory use is one chunk; the stage is told of each.

    Raises:
        LimitError: it is over the budget of all tables.
        RegistryError: it could not be fetched.
        OSError: neither disk nor memory takes it.
        DigestError: it is not what its digest says.
        FormatError: it is no table.
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
            async for chunk in blob.chunks:
                await run_in_thread(writer.write, chunk)
                stage.advance(size=len(chunk))
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


async def fetch_version1(
    repository: Repository,
    folder: IndexFolder,
    document: Digest,
    budget: TableBudget | None = None,
    stage: Stage = SILENT,
) -> TableFile:
    """Fetch the document of a version 1 cache, and keep it as a table; the stage is told when it is here.

    Raises:
        LimitError: it is over the budget of all tables.
        RegistryError: it could not be fetched.
        OSError: neither disk nor memory takes it.
        DigestError: it is not what its digest says.
        FormatError: it is no such document.
    """
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
    try:
        for stanza in version1.text():
            writer.write_text(stanza)
        return writer.finish(None)
    finally:
        writer.close()
