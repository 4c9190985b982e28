"""Watching the store: whatever becomes valid in it is queued, built, substituted or added.

The id of the last path that was queued is on disk, so what came while nobody watched is found. Derivations
are left out, for no client substitutes them, and so is what an upstream signed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from collections.abc import Set as AbstractSet
from typing import Final

from nixcache_oci.clients.durable_file import write_file
from nixcache_oci.clients.local_store.database import MOST_ROWS, StoreDatabase
from nixcache_oci.clients.rooted_path import RootedPath
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.queue.spool import Spool
from nixcache_oci.wording import counted

_MAX_MARK_BYTES: Final = 20

Choose = Callable[[list[StorePath]], Awaitable[list[StorePath]]]
"""Returns those paths that are to be queued; Error if it cannot tell."""


class Watcher:
    """Queues what is new in a store.

    Args:
        spool: that it fills.
        mark: where the last id is kept; the first watch begins at the present.
        database: of the store.
        upstream_key_names: of keys that sign what clients get elsewhere.
        tell: shows a line.
        choose: where not all of it is to be queued.
    """

    def __init__(
        self,
        spool: Spool,
        mark: RootedPath,
        database: StoreDatabase,
        upstream_key_names: AbstractSet[str],
        tell: Callable[[str], None],
        choose: Choose | None = None,
    ) -> None:
        self._spool = spool
        self._mark = mark
        self._database = database
        self._upstream_key_names = upstream_key_names
        self._tell = tell
        self._choose = choose
        self._last: int | None = None  # once it was compared with the database

    async def begin(self) -> int:
        """Find out where a look starts; errors are those of ``look``."""
        if self._last is None:
            self._last = await asyncio.to_thread(self._find_last)
        return self._last

    async def look(self) -> None:
        """Queue what is new; StoreError if the database cannot be read, OSError if the folder is not."""
        last = await self.begin()
        while found := await asyncio.to_thread(self._database.find_new, last):
            paths = [
                StorePath.parse(one.path)
                for one in found
                if not one.path.endswith(".drv") and self._upstream_key_names.isdisjoint(one.key_names)
            ]
            if self._choose is not None and paths:
                paths = await self._choose(paths)
            last = found[-1].id
            await asyncio.to_thread(self._queue, paths, last)
            if len(found) < MOST_ROWS:
                return

    def _queue(self, paths: list[StorePath], last: int) -> None:
        # First the event: what is queued twice is published once.
        if paths:
            self._spool.add(paths)
        self._save(last)

    def _find_last(self) -> int:
        """Read the last id; the present one where there is none, or where the database is a new one."""
        present = self._database.last_id()
        try:
            known = _parse_mark(self._mark.read_bytes(_MAX_MARK_BYTES))
        except FileNotFoundError:
            known = None
        except FormatError as error:
            self._tell(f"{self._mark}: {error}; watching from now on")
            known = None
        if known is not None and known > present:
            self._tell(
                f"the store's database is not the one that was watched before: it has had "
                f"{counted(present, 'path')}, not {known}; watching from now on"
            )
            known = None
        if known is None:
            self._save(present)
        return present if known is None else known

    def _save(self, last: int) -> None:
        write_file(self._mark, [f"{last}\n".encode()], self._mark.parent)
        self._last = last


def _parse_mark(content: bytes) -> int:
    text = content.decode(errors="replace").strip()
    if not (text.isascii() and text.isdigit()):
        raise FormatError(f"expected the number of a path in the store's database, got {text!r}")
    return int(text)
