"""The Nix store of this machine: what it holds, and where that lies."""

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nixcache_oci.clients.local_store.location import find_real_store_dir, find_store_path
from nixcache_oci.clients.local_store.nix_program import Nix, Version
from nixcache_oci.clients.local_store.nix_settings import SETTINGS_COMMAND, ask_settings
from nixcache_oci.clients.local_store.path_info import (
    PathInfo,
    PathInfos,
    parse_path_infos,
    parse_registrations,
)
from nixcache_oci.errors import StoreError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.document import get_text, parse_object, within
from nixcache_oci.wording import counted

PathLike = StorePath | str | Path

_MOST_ARGUMENTS: Final = 4000  # paths of 270 bytes: half of what Linux takes
_JSON_FORMATS: Final = (2, 33, 0)


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A store whose files are on this machine.

    Attributes:
        nix: what is asked.
        store_dir: what its paths begin with.
        real_store_dir: where its files are; another folder in a chroot store.
    """

    nix: Nix
    store_dir: str
    real_store_dir: Path

    @classmethod
    async def open(cls, nix: Nix) -> Self:
        """Ask Nix which store it works on.

        Raises:
            UsageError: there is no Nix, or the store is on another machine.
            StoreError: Nix refused.
        """
        version = await nix.version()
        if version is None:
            expression = ("nix-instantiate", "--eval", "--json", "-E", "builtins.storeDir")
            store_dir = json.loads(await nix.ask_old(*expression))
            store = nix.environment.get("NIX_REMOTE") or "auto"
        else:
            store_dir = (await nix.ask("eval", "--raw", "--expr", "builtins.storeDir")).decode()
            store = await _ask_store(nix, version)
        real_store_dir = await asyncio.to_thread(find_real_store_dir, store, store_dir, nix.environment)
        return cls(nix, store_dir, real_store_dir)

    def real_path(self, store_path: StorePath) -> Path:
        """Tell where the files of a store object are; it need not exist."""
        return self.real_store_dir / store_path.base_name

    async def resolve(self, paths: Iterable[PathLike]) -> list[StorePath]:
        """Tell which store objects are meant, each once, in order; they need not be valid.

        Args:
            paths: of store objects, of what lies inside them, or of what links to them, such as ./result.

        Raises:
            UsageError: one does not lead into the store.
        """
        found = await asyncio.to_thread(
            lambda: [find_store_path(str(path), self.store_dir, self.real_store_dir) for path in paths]
        )
        return list(dict.fromkeys(found))

    async def closure(self, paths: Iterable[PathLike]) -> list[PathInfo]:
        """Describe these paths and all that they reach, references first.

        Args:
            paths: as ``resolve`` takes them.

        Raises:
            UsageError: one does not lead into the store.
            StoreError: one is not valid, or Nix refused.
        """
        return await self._describe(paths, is_recursive=True)

    async def infos(self, paths: Iterable[PathLike]) -> list[PathInfo]:
        """Describe these paths alone, references first.

        Args:
            paths: as ``resolve`` takes them.

        Raises:
            UsageError: one does not lead into the store.
            StoreError: one is not valid, or Nix refused.
        """
        return await self._describe(paths, is_recursive=False)

    async def find_invalid(self, paths: Iterable[StorePath]) -> list[StorePath]:
        """Find those that the store does not hold."""
        found: list[StorePath] = []
        for batch in _batches(paths):
            output = await self.nix.ask_old("nix-store", "--check-validity", "--print-invalid", *batch)
            found += (StorePath.parse(line, self.store_dir) for line in output.decode().splitlines())
        return found

    async def verify_exists(self, paths: Iterable[StorePath]) -> None:
        """Make sure that the store holds these paths.

        Raises:
            StoreError: it does not; names one of them, and the remedy.
        """
        invalid = await self.find_invalid(paths)
        if invalid:
            more = f" (nor {counted(len(invalid) - 1, 'other')})" if len(invalid) > 1 else ""
            raise StoreError(
                f"{invalid[0]}: is not valid in this store{more}; build or fetch it first, as with "
                f"nix-store --realise {invalid[0]}"
            )

    async def _describe(self, paths: Iterable[PathLike], *, is_recursive: bool) -> list[PathInfo]:
        roots = await self.resolve(paths)
        try:
            infos = await self._query(roots, is_recursive=is_recursive)
        except StoreError:
            await self.verify_exists(roots)
            raise
        if None in infos.values():
            await self.verify_exists(roots)
        return order_by_references((info for info in infos.values() if info is not None), roots)

    async def _query(self, paths: Sequence[StorePath], *, is_recursive: bool) -> PathInfos:
        version = await self.nix.version()
        if version is None:
            return await self._query_without_commands(paths, is_recursive=is_recursive)
        arguments = ["--json", *(["--recursive"] if is_recursive else [])]
        # Format 1 is what older versions print; not to choose one will be an error.
        arguments += ["--json-format", "1"] if version >= _JSON_FORMATS else []
        infos: PathInfos = {}
        derivations = [path for path in paths if path.name.endswith(".drv")]
        others = [path for path in paths if not path.name.endswith(".drv")]
        # To older versions the path of a derivation means its outputs.
        for chosen, more in ((others, []), (derivations, ["--derivation"])):
            for batch in _batches(chosen):
                output = await self.nix.ask("path-info", *arguments, *more, *batch)
                infos |= parse_path_infos(output, self.store_dir)
        return infos

    async def _query_without_commands(self, paths: Iterable[StorePath], *, is_recursive: bool) -> PathInfos:
        """Ask as before 2.4; nothing there tells signatures and content addresses of a whole closure."""
        wanted = list(paths)
        if is_recursive:
            found: dict[StorePath, None] = {}
            for batch in _batches(wanted):
                output = await self.nix.ask_old("nix-store", "--query", "--requisites", *batch)
                lines = output.decode().splitlines()
                found |= dict.fromkeys(StorePath.parse(line, self.store_dir) for line in lines)
            wanted = list(found)
        infos: PathInfos = {}
        for batch in _batches(wanted):
            output = await self.nix.ask_old("nix-store", "--dump-db", *batch)
            infos |= parse_registrations(output, self.store_dir)
        return infos


async def _ask_store(nix: Nix, version: Version) -> str:
    """Tell Nix's setting ``store``, wherever it comes from: NIX_REMOTE, nix.conf, an option."""
    settings = await ask_settings(nix, version)
    with within(SETTINGS_COMMAND):
        return get_text(parse_object(settings.get("store")), "value")


def _batches(paths: Iterable[StorePath]) -> Iterator[list[str]]:
    """Cut into what fits on a command line: nearly always once."""
    texts = [str(path) for path in paths]
    for start in range(0, len(texts), _MOST_ARGUMENTS):
        yield texts[start : start + _MOST_ARGUMENTS]
