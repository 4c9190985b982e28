"""What a page says of a store path."""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from nixcache_oci.cache.catalog import Catalog
from nixcache_oci.cache.closure import (
    Closure,
    Referrers,
    find_reaching,
    find_referrers,
    measure_closure,
)
from nixcache_oci.cache.keepers import Keepers, Root
from nixcache_oci.cache.record import PinRecord
from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, judge_signatures
from nixcache_oci.nix.store_path import HashPart

MOST_FOLLOWED: Final = 5_000
"""Paths of a closure that are counted, and paths between roots and a path that are followed."""

MOST_SHOWN: Final = 100
"""Of each list of a page."""

_MOST_PUBLICATIONS: Final = 10
_LINK: Final = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?/[!#$&-;=?-Z_a-z~%]*")


@dataclass(frozen=True, slots=True)
class Publication:
    """A segment that lists a path."""

    time: datetime | None
    source: str | None
    link: str | None


@dataclass(frozen=True, slots=True)
class Reference:
    """A store path that another one refers to, and whether the cache lists it."""

    base_name: str
    name: str
    is_here: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """What keeps a path; whether that is all that does."""

    roots: tuple[Root, ...]
    pins: tuple[PinRecord, ...]
    is_all: bool


@dataclass(frozen=True, slots=True)
class PathFacts:
    """A store path as its page shows it; what is a list is cut, and the counts are not.

    Attributes:
        narinfo: as served.
        closure: within the cache.
        references: to others.
        references_count: how many there are.
        referrers: within the cache.
        published: by which segments, the first one first.
        signatures: by the name of each key: ``good``, ``wrong`` or ``unknown key``.
        is_content_addressed: whether it needs no signature.
        kept: by roots and pins.
    """

    narinfo: NarInfo
    closure: Closure
    references: tuple[Reference, ...]
    references_count: int
    referrers: Referrers
    published: tuple[Publication, ...]
    signatures: dict[str, str]
    is_content_addressed: bool
    kept: Kept


def gather_path_facts(
    catalog: Catalog, narinfo: NarInfo, keys: Sequence[PublicKey], keepers: Keepers
) -> Generator[None, None, PathFacts]:
    """Gather them in short steps."""
    path = narinfo.store_path
    closure = yield from measure_closure(catalog, narinfo, MOST_FOLLOWED)
    referrers = yield from find_referrers(catalog, path, MOST_SHOWN)
    others = [name for name in narinfo.references if name != path.base_name]
    references = []
    for name in others[:MOST_SHOWN]:
        is_here = catalog.find(HashPart.of(name)) is not None
        references.append(Reference(name, name.partition("-")[2], is_here))
        yield
    starts = [*(pin.path for pin in keepers.pins), *(one for root in keepers.roots for one in root.paths)]
    reaching, is_all = yield from find_reaching(catalog, starts, path, MOST_FOLLOWED)
    kept = Kept(
        tuple(islice((root for root in keepers.roots if not reaching.isdisjoint(root.paths)), MOST_SHOWN)),
        tuple(islice((pin for pin in keepers.pins if pin.path in reaching), MOST_SHOWN)),
        is_all and keepers.is_whole,
    )
    return PathFacts(
        narinfo=narinfo,
        closure=closure,
        references=tuple(references),
        references_count=len(others),
        referrers=referrers,
        published=tuple(islice(_publications(catalog, path.hash_part), _MOST_PUBLICATIONS)),
        signatures=dict(islice(judge_signatures(narinfo, keys).items(), MOST_SHOWN)),
        is_content_addressed=is_content_addressed(narinfo),
        kept=kept,
    )


def _publications(catalog: Catalog, hash_part: HashPart) -> Generator[Publication, None, None]:
    for table in reversed(catalog.listing(hash_part)):
        try:
            source = table.file.header.source
        except FormatError:
            source = None
        link = source if source is not None and _LINK.fullmatch(source) else None
        yield Publication(table.created if table.created != EPOCH else None, source, link)
