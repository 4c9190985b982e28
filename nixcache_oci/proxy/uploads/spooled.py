"""What is in the spool: NARs and narinfos, and the spool as a binary cache to publish from."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Final

from nixcache_oci.cache.parallel import run_in_thread
from nixcache_oci.errors import UpstreamError, UpstreamNotFoundError
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.store_path import HashPart
from nixcache_oci.proxy.uploads.intake import Measured
from nixcache_oci.proxy.uploads.journal import Place

_CHUNK_BYTES: Final = 256 * 1024


@dataclass(slots=True, eq=False)
class SpooledNar:
    """One compressed NAR: in memory, in the journal, or if neither in a file."""

    measured: Measured
    suffix: str  # of its compression, as in ``SUFFIXES``
    since: float  # when it came, in seconds of ``time.time()``
    content: bytes | None = None  # while no narinfo names it
    place: Place | None = None
    uses: int = 0  # by narinfos, those that are being written included

    @property
    def hex(self) -> str:
        """FileHash in hex."""
        return self.measured.file_hash.digest_hex

    @property
    def url(self) -> str:
        """Where it is, as narinfos say."""
        return f"nar/{self.hex}.nar{self.suffix}"


@dataclass(frozen=True, slots=True, eq=False)
class SpooledPath:
    """One narinfo, as it is served."""

    narinfo: NarInfo
    text: bytes
    nar: SpooledNar | None  # None if only signatures are added to what the cache lists
    place: Place

    @property
    def hash_part(self) -> HashPart:
        """Its route."""
        return self.narinfo.store_path.hash_part


class SpooledCache:
    """Narinfos of the spool, and their NARs by URL, as what can be imported."""

    name = "uploads"

    def __init__(
        self, paths: Mapping[HashPart, SpooledPath], open_nar: Callable[[SpooledNar], IO[bytes]]
    ) -> None:
        self._paths = paths
        self._open_nar = open_nar
        self._nars = {path.nar.url: path.nar for path in paths.values() if path.nar is not None}

    async def close(self) -> None:
        """Do nothing."""

    async def read_info(self) -> bytes | None:
        """Say that there is no nix-cache-info."""
        return None

    async def list_names(self) -> list[str]:
        """List all hash parts."""
        return sorted(self._paths)

    async def read_narinfo(self, hash_part: HashPart) -> bytes | None:
        """Give a narinfo; None if there is none."""
        path = self._paths.get(hash_part)
        return path.text if path is not None else None

    @asynccontextmanager
    async def open_nar(self, url: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a NAR; UpstreamNotFoundError if there is none, UpstreamError if the disk failed."""
        nar = self._nars.get(url)
        if nar is None:
            raise UpstreamNotFoundError(f"{self.name}: there is no {url}")
        try:
            with await run_in_thread(self._open_nar, nar) as file:
                yield _chunks(file)
        except OSError as error:
            raise UpstreamError(f"{self.name}: {url}: {error.strerror}") from None


async def _chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    while chunk := await run_in_thread(file.read, _CHUNK_BYTES):
        yield chunk
