"""What a load is made of: store objects out of a seed, and what a client holds the answers to."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias

from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from tests.support.objects import store_object
from tests.support.publish import StoreObject

Origin: TypeAlias = Literal["kept", "late", "passing", "upstream"]
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """How many objects one publish adds; sizes are in KiB, and compression does not change them.

    Attributes:
        small: objects in a pack.
        small_kib: the least and the most of each.
        large: objects that are a blob each.
        large_kib: the least and the most of each.
    """

    small: int
    small_kib: tuple[int, int]
    large: int
    large_kib: tuple[int, int]


def make_objects(name: str, shape: Shape, key: SecretKey) -> list[StoreObject]:
    """Make the objects of one publish; the same name gives the same objects."""
    chosen = random.Random(name)
    sizes = [chosen.randint(*shape.small_kib) for _ in range(shape.small)]
    sizes += [chosen.randint(*shape.large_kib) for _ in range(shape.large)]
    return [
        store_object(f"{name}-{number}", contents=chosen.randbytes(kib * _KIB)).signed(key)
        for number, kib in enumerate(sizes)
    ]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One store path, and what its NAR has to be.

    Attributes:
        origin: ``kept`` is listed from the start and must stay, ``late`` comes during the load, ``passing``
            comes and is collected, ``upstream`` is another cache's.
        hash_part: of the path.
        store_path: whole.
        nar_hash: as the narinfo has it.
        file_hex: digest of the NAR as it is downloaded.
        file_size: in bytes.
    """

    origin: Origin
    hash_part: str
    store_path: str
    nar_hash: str
    file_hex: str
    file_size: int


class Catalogue:
    """A folder that tells every process of a load what is right.

    Attributes:
        wanted: everything.
    """

    def __init__(self, folder: Path, wanted: Sequence[Wanted]) -> None:
        self._folder = folder
        self.wanted = tuple(wanted)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what another process wrote."""
        return cls(folder, [Wanted(**each) for each in json.loads((folder / "wanted.json").read_text())])

    @classmethod
    def write(cls, folder: Path, groups: Iterable[tuple[Origin, Sequence[StoreObject]]]) -> Self:
        """Write what is right: the downloads, and the list of them."""
        (folder / "nar").mkdir(parents=True, exist_ok=True)
        wanted = [_write(folder, origin, each) for origin, objects in groups for each in objects]
        (folder / "wanted.json").write_text(json.dumps([asdict(each) for each in wanted]))
        return cls(folder, wanted)

    def path(self, wanted: Wanted) -> Path:
        """Tell where the right bytes of a download lie."""
        return self._folder / "nar" / wanted.file_hex


def write_upstream(folder: Path, objects: Iterable[StoreObject]) -> None:
    """Write a binary cache as other tools serve one: a file a narinfo, and a file a NAR."""
    (folder / "nar").mkdir(parents=True, exist_ok=True)
    for each in objects:
        narinfo, content = each.compressed()
        (folder / narinfo.url).write_bytes(content)
        (folder / f"{narinfo.store_path.hash_part}.narinfo").write_text(narinfo.render())


def differs(wanted: Wanted, body: bytes) -> str | None:
    """Compare a narinfo with what it has to say; tells what is wrong."""
    narinfo = NarInfo.parse(body)
    told = (str(narinfo.store_path), str(narinfo.nar_hash), narinfo.file_size)
    right = (wanted.store_path, wanted.nar_hash, wanted.file_size)
    return None if told == right else f"the narinfo says {told}, not {right}"


def _write(folder: Path, origin: Origin, one: StoreObject) -> Wanted:
    narinfo, content = one.compressed()
    assert narinfo.file_hash is not None
    hexadecimal = narinfo.file_hash.digest.hex()
    (folder / "nar" / hexadecimal).write_bytes(content)
    path = narinfo.store_path
    return Wanted(origin, path.hash_part, str(path), str(narinfo.nar_hash), hexadecimal, len(content))
