"""The Nix store of this machine: what it holds, where its files are, and which store path a path leads to."""

import asyncio
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

from nixcache_oci.clients.local_store.nix_program import Nix, Version
from nixcache_oci.clients.local_store.nix_settings import SETTINGS_COMMAND, ask_settings
from nixcache_oci.clients.local_store.path_info import (
    PathInfo,
    PathInfos,
    parse_path_infos,
    parse_registrations,
)
from nixcache_oci.clients.local_store.program import ignore_line
from nixcache_oci.errors import StoreError, UsageError
from nixcache_oci.nix.closure import order_by_references
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.document import get_text, parse_object, within
from nixcache_oci.wording import counted

_LOCAL_KINDS: Final = ("auto", "daemon", "local", "local-overlay", "unix")
_MOST_LINKS: Final = 40


def find_real_store_dir(store: str, store_dir: str, environment: Mapping[str, str]) -> Path:
    """Return the folder of the store objects: the store dir itself, except for a chroot store.

    ``store`` is Nix's setting, in any spelling: ``auto``, ``/root``, ``local?root=/root``, ``local:///root``,
    ``unix://…``. Raises UsageError if it is not on this machine. Source: Nix manual, "Store types".
    """
    url = urlsplit(store)
    settings = parse_qs(url.query.replace("+", "%2B"))
    kind = url.scheme or url.path
    is_folder = (not url.scheme and "/" in url.path) or (url.scheme == "local" and url.path != "")
    if kind not in _LOCAL_KINDS and not is_folder:
        raise UsageError(f"store {store}: its files are not on this machine; run this where they are")
    if "real" in settings:
        return Path(settings["real"][-1]).absolute()
    root = settings["root"][-1] if "root" in settings else url.path if is_folder else None
    if kind == "auto" and root is None and not Path(store_dir).exists():
        root = _find_own_root(environment)
    return Path(store_dir) if root is None else Path(root).absolute() / store_dir.lstrip("/")


def find_store_path(path: str, store_dir: str, real_store_dir: Path) -> StorePath:
    """Return the store object that a path is, is inside, or links to; UsageError if it is not in the store.

    Raises FormatError if what it leads to is not named like a store object.
    """
    for step in follow_links(path):
        for folder in (store_dir, str(real_store_dir)):
            if step.startswith(f"{folder}/"):
                base_name = step.removeprefix(f"{folder}/").split("/")[0]
                return StorePath.from_base_name(base_name, store_dir)
    raise UsageError(
        f"{path}: not in the store {store_dir}; give a store path, or a link to one, such as ./result"
    )


def follow_links(path: str) -> Iterator[str]:
    """Yield the absolute path, then what each link makes of it; UsageError for a missing part."""
    step: str | None = os.path.abspath(path)  # noqa: PTH100 - pathlib has nothing that only works on the text
    for _ in range(_MOST_LINKS):
        if step is None:
            return
        yield step
        step = _follow_first_link(step)


def _follow_first_link(path: str) -> str | None:
    """Replace the first symbolic link in a path; None without links, UsageError for a missing part."""
    parts = Path(path).parts
    for number in range(2, len(parts) + 1):
        part = Path(*parts[:number])
        try:
            is_link = stat.S_ISLNK(part.lstat().st_mode)
            target = part.readlink() if is_link else None
        except OSError as error:
            # As nix build writes an output of a flake.
            hint = "; publish takes a flake, and --attr narrows it to an output" if "#" in path else ""
            raise UsageError(f"{path}: {error.strerror}{hint}") from None
        if target is not None:
            return os.path.abspath(part.parent.joinpath(target, *parts[number:]))  # noqa: PTH100 - as above
    return None


def _find_own_root(environment: Mapping[str, str]) -> str | None:
    """Find the chroot store that Nix makes for a user without rights to /nix and without a daemon."""
    data = environment.get("XDG_DATA_HOME") or f"{environment.get('HOME', '')}/.local/share"
    root = f"{data}/nix/root"
    return root if Path(root).is_dir() else None


PathLike = StorePath | str | Path

_MOST_ARGUMENTS: Final = 4000  # paths of 270 bytes: half of Linux's limit
_JSON_FORMATS: Final = (2, 33, 0)


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A store whose files are on this machine."""

    nix: Nix  # to ask
    store_dir: str  # such as ``/nix/store``
    real_store_dir: Path  # folder of its files, which differs for a chroot store

    @classmethod
    async def open(cls, nix: Nix) -> Self:
        """Ask Nix which store it works on; StoreError if Nix failed.

        Raises UsageError if there is no Nix, or the store is on another machine.
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
        """Return where the files of a store object are; it need not exist."""
        return self.real_store_dir / store_path.base_name

    async def resolve(self, paths: Iterable[PathLike]) -> list[StorePath]:
        """Return the store objects that paths lead to, each once, in order; they need not be valid.

        Paths are those of store objects, of files inside them, or of links to them, such as ./result. Raises
        UsageError if one does not lead into the store.
        """
        found = await asyncio.to_thread(
            lambda: [find_store_path(str(path), self.store_dir, self.real_store_dir) for path in paths]
        )
        return list(dict.fromkeys(found))

    async def closure(self, paths: Iterable[PathLike]) -> list[PathInfo]:
        """Describe the closure of paths, references first; ``paths`` and errors are as for ``resolve``.

        Raises StoreError if one is not valid, or Nix failed.
        """
        return await self._describe(paths, is_recursive=True)

    async def infos(self, paths: Iterable[PathLike]) -> list[PathInfo]:
        """Describe only these paths, references first; arguments and errors are those of ``closure``."""
        return await self._describe(paths, is_recursive=False)

    async def find_invalid(self, paths: Iterable[StorePath]) -> list[StorePath]:
        """Find the paths that are not valid in the store."""
        found: list[StorePath] = []
        for batch in _batches(paths):
            output = await self.nix.ask_old("nix-store", "--check-validity", "--print-invalid", *batch)
            found += (StorePath.parse(line, self.store_dir) for line in output.decode().splitlines())
        return found

    async def find_outputs(self, derivations: Sequence[StorePath]) -> list[StorePath]:
        """Find the outputs of derivations, as far as they are known; they need not be valid.

        Raises StoreError if Nix does not work.
        """
        found: list[StorePath] = []
        for batch in _batches(derivations):
            try:
                output = await self._ask_outputs(batch)
            except StoreError:
                # One of them is gone, or has outputs that only its build names; or Nix does not work.
                gone = set(map(str, await self.find_invalid(derivations)))
                output = await self._find_some_outputs([one for one in batch if one not in gone])
            found += (StorePath.parse(line, self.store_dir) for line in output.decode().splitlines())
        return list(dict.fromkeys(found))

    async def _ask_outputs(self, derivations: Sequence[str]) -> bytes:
        return await self.nix.ask_old("nix-store", "--query", "--outputs", *derivations, on_line=ignore_line)

    async def _find_some_outputs(self, derivations: Sequence[str]) -> bytes:
        """Ask for half of them at a time until what fails stands alone: few calls where few fail."""
        if not derivations:
            return b""
        with suppress(StoreError):
            return await self._ask_outputs(derivations)
        half = len(derivations) // 2
        if not half:
            return b""
        return await self._find_some_outputs(derivations[:half]) + await self._find_some_outputs(
            derivations[half:]
        )

    async def add_gc_roots(self, folder: Path, paths: Iterable[StorePath]) -> None:
        """Keep these paths from Nix's garbage collector until the folder, of links to them, is removed.

        The folder must not exist. Derivations are left alone, for Nix would build them. Raises StoreError if
        one is not valid.
        """
        await asyncio.to_thread(folder.mkdir, parents=True)
        for number, batch in enumerate(_batches(path for path in paths if not path.name.endswith(".drv"))):
            more = ("--option", "substitute", "false", "--indirect", "--add-root", str(folder / f"{number}"))
            await self.nix.ask_old("nix-store", "--realise", *more, *batch, on_line=ignore_line)

    async def verify_exists(self, paths: Iterable[StorePath]) -> None:
        """Check that the store holds these paths; StoreError, with what to do, if it does not."""
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
        # Format 1 is that of older versions; not choosing one will be an error.
        arguments += ["--json-format", "1"] if version >= _JSON_FORMATS else []
        infos: PathInfos = {}
        derivations = [path for path in paths if path.name.endswith(".drv")]
        others = [path for path in paths if not path.name.endswith(".drv")]
        # To older versions, a derivation's path means its outputs.
        for chosen, more in ((others, []), (derivations, ["--derivation"])):
            for batch in _batches(chosen):
                output = await self.nix.ask("path-info", *arguments, *more, *batch)
                infos |= parse_path_infos(output, self.store_dir)
        return infos

    async def _query_without_commands(self, paths: Iterable[StorePath], *, is_recursive: bool) -> PathInfos:
        """Ask a Nix before 2.4, which cannot list signatures and content addresses of a whole closure."""
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
    """Return Nix's setting ``store``, whether from NIX_REMOTE, nix.conf or an option."""
    settings = await ask_settings(nix, version)
    with within(SETTINGS_COMMAND):
        return get_text(parse_object(settings.get("store")), "value")


def _batches(paths: Iterable[StorePath]) -> Iterator[list[str]]:
    """Split into what fits on a command line: nearly always one batch."""
    texts = [str(path) for path in paths]
    for start in range(0, len(texts), _MOST_ARGUMENTS):
        yield texts[start : start + _MOST_ARGUMENTS]
