"""Tables on disk: whole or not there, and open for look-ups at once."""

import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.cache.table import MAX_TABLE_BYTES, Table, TableHeader, render_table
from nixcache_oci.cache.table_file import TableFile, TableFileWriter, remove_table
from nixcache_oci.cache.table_inflation import inflate_table
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import DigestError, FormatError
from nixcache_oci.oci.digest import Digest
from tests.support.objects import hash_part_of, store_object
from tests.support.process import open_files_in
from tests.support.publish import CREATED

NARINFOS = tuple(store_object(str(number)).narinfo for number in range(10, 55))
TEXT = render_table(Table(TableHeader(CREATED, public_keys=("k:AAAA",)), (), NARINFOS))
OTHERS = tuple(store_object(str(number)).narinfo for number in range(55, 100))
NARINFOS_IN_ORDER = tuple(sorted(NARINFOS, key=lambda one: one.store_path.hash_part))
BLOB = zstandard.ZstdCompressor().compress(TEXT)


def write(path: Path, blob: bytes, digest: Digest | None = None) -> TableFile:
    """Write in small pieces, as they come from a registry."""
    writer = TableFileWriter(RootedPath.of(path))
    try:
        for start in range(0, len(blob), 1000):
            writer.write(blob[start : start + 1000])
        return writer.finish(digest or Digest.of(blob))
    finally:
        writer.close()


def test_what_was_written_is_found(tmp_path: Path) -> None:
    """By the process that wrote it, and by the next one; exactly as it was published."""
    path = tmp_path / "a.table"
    for table in (write(path, BLOB), TableFile.open(RootedPath.of(path))):
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
        (
            zstandard.ZstdCompressor().compress(TEXT + b"\n" + NARINFOS[0].render().encode()),
            None,
            FormatError,
        ),
        (zstandard.ZstdCompressor().compress(bytes(MAX_TABLE_BYTES + 1)), None, FormatError),
        (BLOB + b"rest", None, FormatError),
    ],
    ids=["digest", "cut", "no-zstd", "no-bytes", "empty", "no-table", "no-end", "order", "bomb", "rest"],
)
def test_what_is_wrong_leaves_nothing_behind(
    tmp_path: Path, blob: bytes, digest: Digest | None, error: type[Exception]
) -> None:
    """Neither a file that looks like a table, nor a temporary one; a small blob cannot fill the disk."""
    with pytest.raises(error):
        write(tmp_path / "a.table", blob, digest)
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_is_stopped_while_it_inflates(tmp_path: Path) -> None:
    """Before it has filled the disk: a few kilobytes can inflate to gigabytes."""
    writer = TableFileWriter(RootedPath.of(tmp_path / "a.table"))
    with pytest.raises(FormatError, match="over"):
        writer.write(zstandard.ZstdCompressor().compress(bytes(2 * MAX_TABLE_BYTES)))
    [unfinished] = tmp_path.iterdir()
    assert unfinished.stat().st_size <= MAX_TABLE_BYTES
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    """What was written so far is given back, or the disk stays full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(TEXT) // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "a.table", BLOB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_record_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    """It is gc's trouble; a hundred thousand narinfos may lie beside it."""
    text = TEXT.replace(b"\n\n", b"\n\nPublish: nonsense\n\n", 1)
    table = write(tmp_path / "a.table", zstandard.ZstdCompressor().compress(text))
    assert table.find(NARINFOS[0].store_path.hash_part) is not None


WRITE_AND_READ = """
import sys
from pathlib import Path
from nixcache_oci.cache.table_file import TableFileWriter
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.oci.digest import Digest
path, blob = RootedPath.of(Path(sys.argv[1])), Path(sys.argv[2]).read_bytes()
for _ in range(50):
    writer = TableFileWriter(path)
    writer.write(blob)
    table = writer.finish(Digest.of(blob))
    writer.close()
    assert table.text(0).startswith(b"StorePath: "), table.text(0)
"""


def test_processes_may_share_a_folder(tmp_path: Path) -> None:
    """Two proxies of one user fetch the same table at once, or remove what the other has just written."""
    (tmp_path / "blob").write_bytes(BLOB)
    command = [sys.executable, "-c", WRITE_AND_READ, str(tmp_path / "a.table"), str(tmp_path / "blob")]
    processes = [subprocess.Popen(command) for _ in range(2)]
    while any(process.poll() is None for process in processes):
        remove_table(RootedPath.of(tmp_path / "a.table"))  # as a third one does that knows of an older index
    assert [process.wait() for process in processes] == [0, 0]
    remove_table(RootedPath.of(tmp_path / "a.table"))
    assert {path.name for path in tmp_path.iterdir()} == {"blob"}


@pytest.mark.parametrize(
    "damage",
    [
        "keys-missing",
        "keys-empty",
        "keys-cut",
        "keys-short",
        "keys-other",
        "keys-stolen",
        "text-cut",
        "text-empty",
    ],
)
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
        case "keys-empty":
            os.truncate(keys, 0)
        case "keys-short":
            os.truncate(keys, 40)
        case "keys-stolen":
            # As large as this one, with as many narinfos: only what the keys say is different.
            text = render_table(Table(TableHeader(CREATED, public_keys=("k:AAAA",)), (), OTHERS))
            assert len(text) == len(TEXT)
            write(tmp_path / "b.table", zstandard.ZstdCompressor().compress(text))
            (tmp_path / "b.keys").replace(keys)
        case "keys-other":
            keys.write_bytes(b"x" * keys.stat().st_size)
        case "text-cut":
            os.truncate(path, 500)
        case _:
            os.truncate(path, 0)
    with pytest.raises((FormatError, FileNotFoundError)):
        TableFile.open(RootedPath.of(path))


def test_who_has_it_open_keeps_it(tmp_path: Path) -> None:
    """A table may be removed, or written by another process, while requests read it."""
    path = tmp_path / "a.table"
    first = write(path, BLOB)
    second = write(path, BLOB)
    remove_table(RootedPath.of(path))
    for table in (first, second):
        assert table.find(NARINFOS[0].store_path.hash_part) is not None


def test_files_are_given_back(tmp_path: Path) -> None:
    """A proxy that refreshes for a year must not run out of descriptors or maps."""
    path = tmp_path / "a.table"
    write(path, BLOB)
    gc.collect()

    def held() -> tuple[int, list[Path]]:
        maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
        return maps, open_files_in(tmp_path)

    before = held()
    for _ in range(20):
        table = TableFile.open(RootedPath.of(path))
        # Whoever still reads keeps it alive; the order in which its parts go is the interpreter's.
        row, find = table.find(NARINFOS[0].store_path.hash_part), table.text
        del table
        assert row is not None
        assert find(row)
        del find
    os.truncate(path, 500)
    for _ in range(20):
        with pytest.raises(FormatError):
            TableFile.open(RootedPath.of(path))
    gc.collect()
    assert held() == before


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_all_frames_of_a_table_count_for_everybody(tmp_path: Path, frames: int) -> None:
    """A writer may compress in pieces: whoever decides on a table sees what is served from it."""
    size = -(-len(TEXT) // frames)
    pieces = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
    blob = b"".join(zstandard.ZstdCompressor().compress(piece) for piece in pieces)
    assert inflate_table(blob) == TEXT
    table = write(tmp_path / "a.table", blob)
    assert tuple(table.narinfos()) == NARINFOS_IN_ORDER
    served = [table.text(row) for row in range(table.count)]
    assert served == [one.render().encode() for one in table.narinfos()]


@pytest.mark.parametrize("padding", [200_000, 60 * 1024 * 1024])
def test_a_table_inflates_to_a_bounded_multiple(tmp_path: Path, padding: int) -> None:
    """A blob of 4 KiB could become 64 MiB. Real tables are mostly hashes; small ones may be anything."""
    text = TEXT.replace(b"Public-Key", b"X-Note: " + b"x" * 4000 + b"\nPublic-Key", 1)
    record = b"\nLater: " + b"x" * (1024 * 1024 // 2) + b"\n"
    head, rest = text.split(b"\n\n", 1)
    text = head + b"\n" + record * max(1, padding // len(record)) + b"\n" + rest
    blob = zstandard.ZstdCompressor(level=19).compress(text)
    assert len(text) > 64 * len(blob)
    if len(text) < 1024 * 1024:
        assert write(tmp_path / "a.table", blob).count == len(NARINFOS)
        return
    with pytest.raises(FormatError, match="when inflated"):
        write(tmp_path / "a.table", blob)
    assert list(tmp_path.iterdir()) == []
    # Nor does anybody else count what no proxy serves.
    with pytest.raises(FormatError, match="when inflated"):
        inflate_table(blob)


def test_a_window_is_as_large_as_every_reader_takes(tmp_path: Path) -> None:
    """Each table on its way takes one: with 64 MiB each, four of them would take 256 MiB."""
    for window_log, is_taken in ((23, True), (24, False)):
        parameters = zstandard.ZstdCompressionParameters(window_log=window_log, compression_level=19)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        blob = compressor.compress(TEXT) + compressor.flush()
        if is_taken:
            write(tmp_path / "a.table", blob)
            assert inflate_table(blob) == TEXT
        else:
            with pytest.raises(FormatError, match="not zstd"):
                write(tmp_path / "b.table", blob)
            with pytest.raises(FormatError, match="not zstd"):
                inflate_table(blob)


def test_few_recorded_keys_are_kept(tmp_path: Path) -> None:
    """Thousands of tables may name a hundred each, and all of them are in memory."""
    keys = ("x" * 600, *(f"key-{number}:AAAA" for number in range(100)))
    text = render_table(Table(TableHeader(CREATED, public_keys=keys)))
    table = write(tmp_path / "a.table", zstandard.ZstdCompressor().compress(text))
    assert table.recorded_keys == keys[1:9]
    assert table.header.public_keys == keys
