"""What a publish counts on: the segments that are there, as far as they are read."""

from pathlib import Path

import pytest

from nixcache_oci.cache import listing, table_set
from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table_budget import TableBudget
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.publisher.contents import Contents, ContentsReader
from tests.support.interleaving import nothing
from tests.support.model_repository import ModelRepository, ModelStorage
from tests.support.objects import hash_part_of, store_object
from tests.support.publish import CREATED, publish
from tests.support.told import Told

NAMES = ["oldest", "middle", "newest"]


async def read(folder: Path, told: Told, gone: str = "") -> Contents:
    storage = ModelStorage()
    repository = ModelRepository(storage, nothing)
    segments = {}
    for number, name in enumerate(NAMES):
        created = CREATED.replace(hour=number)
        record = PublishRecord(name, "1", created)
        segments[name] = await publish(repository, [store_object(name)], records=[record], created=created)
    if gone:
        del storage.manifests[segments[gone].manifest], storage.tags[str(segments[gone].tag)]
    return await ContentsReader(repository, IndexFolder(folder, "cache"), told).read()


def found(contents: Contents) -> list[str]:
    return [name for name in NAMES if contents.find(HashPart(hash_part_of(name))) is not None]


async def test_all_of_a_cache_counts(tmp_path: Path) -> None:
    """Then a publish can tell whether it would change anything."""
    told = Told()
    contents = await read(tmp_path, told)
    assert found(contents) == NAMES
    assert contents.records is not None
    assert sorted(record.scope for record in contents.records) == sorted(NAMES)
    assert told.warnings == []


async def test_what_is_gone_does_not_count(tmp_path: Path) -> None:
    """It is sent again, and something has to be written: the index lists what is not there."""
    contents = await read(tmp_path, Told(), gone="oldest")
    assert found(contents) == NAMES[1:]
    assert contents.records is None


@pytest.mark.parametrize("limit", ["segments", "entries"])
async def test_what_is_over_a_limit_does_not_count(
    tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said; of records that were not read nobody can say what they change."""
    if limit == "segments":
        monkeypatch.setattr(listing, "MAX_SEGMENTS", 2)
    else:
        monkeypatch.setattr(table_set, "TableBudget", lambda: TableBudget(most_entries=2))
    told = Told()
    contents = await read(tmp_path, told)
    assert len(found(contents)) == 2
    assert contents.records is None
    [line] = told.warnings
    assert line.startswith("1 of 3 segments left out, the oldest")
