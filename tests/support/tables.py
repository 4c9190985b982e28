"""Tables on disk, without a cache around them."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.catalog import CatalogTable
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cache.table_file import TableFileWriter
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.oci.digest import Digest
from tests.support.publish import CREATED

MakeTable = Callable[..., CatalogTable]


@pytest.fixture
def make_table(tmp_path: Path) -> MakeTable:
    def make(
        *narinfos: NarInfo,
        hours: int = 0,
        condemned: bool = False,
        text: bytes = b"",
    ) -> CatalogTable:
        created = CREATED + timedelta(hours=hours)
        text = text or render_table(Table(TableHeader(created), (), narinfos))
        writer = TableFileWriter(RootedPath.of(tmp_path / f"{Digest.of(text).hex}.table"))
        writer.write_text(text)
        file = writer.finish(Digest.of(text))
        writer.close()
        return CatalogTable(file, condemned, created)

    return make
