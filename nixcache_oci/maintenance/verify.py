"""The check: what a cache lists is there, whole, signed, and complete with all that it refers to."""

import hashlib
import lzma
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import zstandard

from nixcache_oci.cache.inventory import Entry, Inventory
from nixcache_oci.cache.nar_url import MAX_PACK_BYTES, NarUrl
from nixcache_oci.cache.parallel import run_all, run_in_thread
from nixcache_oci.clients.repository import Repository
from nixcache_oci.clients.resume import open_resuming, read_blob
from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.errors import DigestError, FormatError, NotFoundError, UpstreamError
from nixcache_oci.nix.content_address import is_content_addressed
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import PublicKey, is_signed_by
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.oci.digest import Digest

_PARALLEL_REQUESTS: Final = 16
_PARALLEL_BLOBS: Final = 4
_MAX_WINDOW_BYTES: Final = 128 * 1024 * 1024

Tell = Callable[[str], None]
"""Is given one line for people, now and then."""


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something that is wrong with a listed path.

    Attributes:
        path: the store path, or the tag of a segment that cannot be read.
        what: in one line.
    """

    path: str
    what: str


async def verify(
    repository: Repository,
    inventory: Inventory,
    upstreams: Upstreams,
    keys: Sequence[PublicKey],
    *,
    with_content: bool,
    tell: Tell,
) -> list[Problem]:
    """Find all that is wrong.

    Args:
        repository: where the bytes lie.
        inventory: what is listed.
        upstreams: are asked for what is referred to and not listed.
        keys: each path is signed by one of them, or names its own content; empty for any.
        with_content: whether every byte is downloaded and hashed; otherwise only sizes are asked for.
        tell: hears how far it is.

    Raises:
        Error: the repository could not answer.
    """
    problems = [Problem(tag, reason) for tag, reason in inventory.tables.damaged.items()]
    entries = list(inventory.entries())
    listed = {entry.narinfo.store_path.hash_part for entry in entries}
    tell(f"{len(entries)} paths are listed")
    problems += _check_signatures(entries, keys)
    problems += await _check_references(entries, listed, upstreams, tell)
    by_blob: defaultdict[Digest, list[NarInfo]] = defaultdict(list)
    for entry in entries:
        by_blob[NarUrl.parse(entry.narinfo.url).blob].append(entry.narinfo)
    tell(f"{len(by_blob)} blobs hold them")
    check = _check_content if with_content else _check_size
    at_once = _PARALLEL_BLOBS if with_content else _PARALLEL_REQUESTS
    found = await run_all((check(repository, blob, narinfos) for blob, narinfos in by_blob.items()), at_once)
    return sorted({*problems, *(problem for some in found for problem in some)})


def _check_signatures(entries: Iterable[Entry], keys: Sequence[PublicKey]) -> list[Problem]:
    return [
        _problem(entry.narinfo, "no known key signed it")
        for entry in entries
        if keys and not is_signed_by(entry.narinfo, keys) and not is_content_addressed(entry.narinfo)
    ]


async def _check_references(
    entries: Iterable[Entry], listed: set[HashPart], upstreams: Upstreams, tell: Tell
) -> list[Problem]:
    referrers: defaultdict[str, list[NarInfo]] = defaultdict(list)
    for entry in entries:
        for reference in entry.narinfo.references:
            if HashPart(reference.partition("-")[0]) not in listed:
                referrers[reference].append(entry.narinfo)
    if referrers:
        tell(f"{len(referrers)} paths that are referred to are looked for upstream")

    async def find(reference: str) -> str | None:
        try:
            found = await upstreams.find(HashPart(reference.partition("-")[0]))
        except UpstreamError as error:
            return f"it refers to {reference}, and no upstream could say whether it has that: {error}"
        return None if found is not None else f"it refers to {reference}, which is neither here nor upstream"

    answers = await run_all((find(reference) for reference in referrers), _PARALLEL_REQUESTS)
    return [
        _problem(narinfo, answer)
        for (_, narinfos), answer in zip(referrers.items(), answers, strict=True)
        if answer is not None
        for narinfo in narinfos
    ]


async def _check_size(repository: Repository, blob: Digest, narinfos: Sequence[NarInfo]) -> list[Problem]:
    try:
        size = await repository.stat_blob(blob)
    except NotFoundError:
        return [_problem(narinfo, f"blob {blob} is missing") for narinfo in narinfos]
    return [_problem(narinfo, what) for narinfo in narinfos if (what := _size_trouble(narinfo, size))]


def _size_trouble(narinfo: NarInfo, size: int) -> str | None:
    url = NarUrl.parse(narinfo.url)
    if url.offset is not None and url.length is not None:
        end = url.offset + url.length
        return f"it ends at byte {end} of a pack of {size}" if end > size else None
    if narinfo.file_size not in (None, size):
        return f"FileSize is {narinfo.file_size}, and its blob has {size} bytes"
    return None


async def _check_content(repository: Repository, blob: Digest, narinfos: Sequence[NarInfo]) -> list[Problem]:
    """Download a blob once, and unpack every NAR in it."""
    try:
        if all(NarUrl.parse(narinfo.url).offset is not None for narinfo in narinfos):
            content = await read_blob(repository, blob, MAX_PACK_BYTES)
            return await run_in_thread(_check_pack, bytes(content), narinfos)
        return await _check_stream(repository, blob, narinfos)
    except NotFoundError:
        what = f"blob {blob} is missing"
    except (DigestError, FormatError) as error:
        what = str(error)
    return [_problem(narinfo, what) for narinfo in narinfos]


def _check_pack(content: bytes, narinfos: Iterable[NarInfo]) -> list[Problem]:
    problems = []
    for narinfo in narinfos:
        url = NarUrl.parse(narinfo.url)
        what = _size_trouble(narinfo, len(content))
        if what is None:
            checker = NarChecker(narinfo)
            start = url.offset or 0
            checker.write(content[start : start + (url.length or 0)])
            what = checker.finish()
        if what is not None:
            problems.append(_problem(narinfo, what))
    return problems


async def _check_stream(repository: Repository, blob: Digest, narinfos: Sequence[NarInfo]) -> list[Problem]:
    checkers: Mapping[NarInfo, NarChecker] = {narinfo: NarChecker(narinfo) for narinfo in narinfos}
    hasher = hashlib.sha256()

    def write(chunk: bytes) -> None:
        hasher.update(chunk)
        for checker in checkers.values():
            checker.write(chunk)

    async with open_resuming(repository, blob) as stream:
        async for chunk in stream.chunks:
            await run_in_thread(write, chunk)
    if hasher.hexdigest() != blob.hex:
        return [
            _problem(narinfo, f"blob {blob} has other bytes than its digest says") for narinfo in narinfos
        ]
    found = [(narinfo, checker.finish()) for narinfo, checker in checkers.items()]
    return [_problem(narinfo, what) for narinfo, what in found if what is not None]


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


class _Stored:
    def decompress(self, data: bytes, /) -> bytes:
        return data


class NarChecker:
    """Holds the bytes of one compressed NAR to its narinfo, piece by piece.

    Args:
        narinfo: says what they have to be.
    """

    def __init__(self, narinfo: NarInfo) -> None:
        self._narinfo = narinfo
        self._hasher = hashlib.sha256()
        self._size = 0
        self._trouble: str | None = None
        self._decompressor = _decompressor(narinfo.compression)

    def write(self, piece: bytes) -> None:
        """Take the next piece."""
        if self._trouble is not None or self._decompressor is None:
            return
        try:
            nar = self._decompressor.decompress(piece)
        except (zstandard.ZstdError, lzma.LZMAError, EOFError) as error:
            self._trouble = f"it cannot be decompressed: {error}"
            return
        self._hasher.update(nar)
        self._size += len(nar)

    def finish(self) -> str | None:
        """Tell what is wrong with the whole; None where nothing is, or where nobody here can unpack it."""
        if self._trouble is not None or self._decompressor is None:
            return self._trouble
        if (self._size, NixHash(self._hasher.digest())) != (self._narinfo.nar_size, self._narinfo.nar_hash):
            return f"its NAR is not what NarHash says ({self._size} bytes, {NixHash(self._hasher.digest())})"
        return None


def _decompressor(compression: str) -> _Decompressor | None:
    match compression:
        case "zstd":
            return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).decompressobj()
        case "xz":
            return lzma.LZMADecompressor()
        case "none":
            return _Stored()
    return None


def _problem(narinfo: NarInfo, what: str) -> Problem:
    return Problem(str(narinfo.store_path), what)
