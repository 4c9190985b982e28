"""Tables on disk: whole or not there, and open for look-ups at once."""

import gc
import os
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, TableHeader, render_table
from nixcache_oci.cache.table_file import TableFile, TableFileWriter, remove_table
from nixcache_oci.errors import DigestError, FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED

NARINFOS = tuple(store_object(str(number)).narinfo for number in range(50))
TEXT = render_table(Table(TableHeader(CREATED, public_keys=("k:AAAA",)), (), NARINFOS))
BLOB = zstandard.ZstdCompressor().compress(TEXT)


def write(path: Path, blob: bytes, digest: Digest | None = None) -> TableFile:
    """Write in small pieces, as they come from a registry."""
    writer = TableFileWriter(path)
    try:
        for start in range(0, len(blob), 1000):
            writer.write(blob[start : start + 1000])
        return writer.finish(digest or Digest.of(blob))
    finally:
        writer.close()


def test_what_was_written_is_found(tmp_path: Path) -> None:
    """By the process that wrote it, and by the next one; exactly as it was published."""
    path = tmp_path / "a.table"
    for table in (write(path, BLOB), TableFile.open(path)):
        assert table.count == len(NARINFOS)
        assert table.header.public_keys == ("k:AAAA",)
        for narinfo in NARINFOS:
            row = table.find(narinfo.store_path.hash_part)
            assert row is not None
            assert table.text(row) == narinfo.render().encode()
        assert table.find(hash_part_of("nowhere")) is None


def test_an_empty_table_is_fine(tmp_path: Path) -> None:
    """A publish with nothing new writes its record all the same."""
    text = render_table(Table(TableHeader(CREATED)))
    table = write(tmp_path / "a.table", zstandard.ZstdCompressor().compress(text))
    assert table.count == 0
    assert table.find(hash_part_of("x")) is None


@pytest.mark.parametrize(
    ("blob", "digest", "error"),
    [
        (BLOB, Digest.of(b"other"), DigestError),
        (BLOB[:-30], None, FormatError),
        (b"no zstd at all", None, FormatError),
        (b"", None, FormatError),
        (zstandard.ZstdCompressor().compress(b""), None, FormatError),
        (zstandard.ZstdCompressor().compress(b"no table\n"), None, FormatError),
        (zstandard.ZstdCompressor().compress(TEXT[:-1]), None, FormatError),
        (zstandard.ZstdCompressor().compress(bytes(MAX_TABLE_BYTES + 1)), None, FormatError),
    ],
    ids=["digest", "cut", "no-zstd", "no-bytes", "empty", "no-table", "no-end", "bomb"],
)
def test_what_is_wrong_leaves_nothing_behind(
    tmp_path: Path, blob: bytes, digest: Digest | None, error: type[Exception]
) -> None:
    """Neither a file that looks like a table, nor a temporary one; a small blob cannot fill the disk."""
    with pytest.raises(error):
        write(tmp_path / "a.table", blob, digest)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["keys-missing", "keys-cut", "keys-other", "text-cut", "text-empty"])
def test_a_damaged_file_is_noticed(tmp_path: Path, damage: str) -> None:
    """It is fetched again, and never served."""
    path = tmp_path / "a.table"
    write(path, BLOB)
    keys = path.with_suffix(".keys")
    match damage:
        case "keys-missing":
            keys.unlink()
        case "keys-cut":
            os.truncate(keys, keys.stat().st_size - 1)
        case "keys-other":
            keys.write_bytes(b"x" * keys.stat().st_size)
        case "text-cut":
            os.truncate(path, 500)
        case _:
            os.truncate(path, 0)
    with pytest.raises((FormatError, FileNotFoundError)):
        TableFile.open(path)


def test_who_has_it_open_keeps_it(tmp_path: Path) -> None:
    """A table may be removed, or written by another process, while requests read it."""
    path = tmp_path / "a.table"
    first = write(path, BLOB)
    second = write(path, BLOB)
    remove_table(path)
    for table in (first, second):
        assert table.find(NARINFOS[0].store_path.hash_part) is not None


def test_files_are_given_back(tmp_path: Path) -> None:
    """A proxy that refreshes for a year must not run out of descriptors or maps."""
    path = tmp_path / "a.table"
    write(path, BLOB)
    gc.collect()

    def maps() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    before = maps()
    for _ in range(20):
        TableFile.open(path)
    gc.collect()
    assert maps() == before
