"""Building outputs, and finding out which of them are there afterwards."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nixcache_oci.clients.local_store.output import Output
from nixcache_oci.clients.local_store.program import Ended, OnLine
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import StoreError
from nixcache_oci.nix.store_path import StorePath

_FIRST_WITH_CARET: Final = (2, 13, 0)
_QUERIES_AT_ONCE: Final = 4
_DERIVATION = re.compile(r"[^\s'\"/]+\.drv")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What became of the outputs, by attribute.

    Attributes:
        built: all store paths of each that is there now, whether it was built, fetched, or there before.
        failed: why each other one is not, in one line; Nix's own words were shown.
    """

    built: Mapping[str, tuple[StorePath, ...]]
    failed: Mapping[str, str]


async def build(
    store: LocalStore,
    outputs: Sequence[Output],
    *,
    keep_going: bool = True,
    accept_flake_config: bool = False,
) -> BuildResult:
    """Build all of them with one call of Nix, with logs on standard error. A failure is no error here.

    Args:
        store: where; its Nix's options tell substituters and keys.
        outputs: what.
        keep_going: whether a failure leaves the others going.
        accept_flake_config: whether the settings that the flake brings with it, such as substituters, count.

    Raises:
        UsageError: Nix is missing, or too old.
        StoreError: Nix cannot tell what was built.
    """
    if not outputs:
        return BuildResult({}, {})
    nix = store.nix
    version = await nix.require_version()
    suffix = "^*" if version >= _FIRST_WITH_CARET else ""
    drv_paths = list(dict.fromkeys(output.drv_path for output in outputs))
    arguments = ["--keep-going"] if keep_going else []
    if accept_flake_config:
        # Nix reads the settings of a flake when it is asked for one of the flake's attributes.
        named = [output.installable for output in outputs if output.installable is not None]
        arguments += ["--accept-flake-config", *named[:1]]
    reasons = _Reasons(nix.on_line)

    async def attempt(wanted: Sequence[StorePath]) -> Ended:
        return await nix.attempt(
            *("build", "--json", "--no-link", "--print-build-logs"),
            *arguments,
            *(f"{path}{suffix}" for path in wanted),
            on_line=reasons,
        )

    ended = await attempt(drv_paths)
    if ended.status == 0:
        paths = _parse_built(ended.stdout, store.store_dir)
    else:
        paths, unreadable = await _find_built(store, drv_paths)
        readable = [path for path in drv_paths if path not in unreadable]
        if keep_going and unreadable and paths.keys() != set(readable):
            # A flake may name what is no derivation, and Nix then builds none of the others either.
            await attempt(readable)
            paths, _ = await _find_built(store, readable)
    built = {output.attr: paths[output.drv_path] for output in outputs if output.drv_path in paths}
    failed = {
        output.attr: reasons.find(output.drv_path) or ended.reason
        for output in outputs
        if output.drv_path not in paths
    }
    return BuildResult(built, failed)


def _parse_built(content: bytes, store_dir: str) -> dict[StorePath, tuple[StorePath, ...]]:
    """Read what ``nix build --json`` printed; what was asked for in two ways stands there twice."""
    found: dict[StorePath, dict[StorePath, None]] = {}
    for entry in json.loads(content):
        paths = found.setdefault(StorePath.parse(entry["drvPath"], store_dir), {})
        paths |= {StorePath.parse(path, store_dir): None for path in entry["outputs"].values()}
    return {drv_path: tuple(paths) for drv_path, paths in found.items()}


async def _find_built(
    store: LocalStore, drv_paths: Iterable[StorePath]
) -> tuple[dict[StorePath, tuple[StorePath, ...]], set[StorePath]]:
    """Find the derivations whose outputs are all there; a failed build tells nothing about the others.

    Returns:
        Their outputs, and the derivations that are not there or cannot be read.
    """
    room = asyncio.Semaphore(_QUERIES_AT_ONCE)

    async def find_outputs(drv_path: StorePath) -> tuple[StorePath, ...] | None:
        async with room:
            try:
                output = await store.nix.ask_old("nix-store", "--query", "--outputs", str(drv_path))
            except StoreError:
                return None
        return tuple(StorePath.parse(line, store.store_dir) for line in output.decode().splitlines())

    drv_paths = list(drv_paths)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(find_outputs(drv_path)) for drv_path in drv_paths]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    found = {drv_path: task.result() for drv_path, task in zip(drv_paths, tasks, strict=True)}
    outputs = {drv_path: paths for drv_path, paths in found.items() if paths is not None}
    missing = set(await store.find_invalid([path for paths in outputs.values() for path in paths]))
    built = {drv_path: paths for drv_path, paths in outputs.items() if missing.isdisjoint(paths)}
    return built, found.keys() - outputs.keys()


class _Reasons:
    """Passes lines on, and keeps the first error that names a derivation."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._reasons: dict[str, str] = {}
        self._last: str | None = None

    def __call__(self, line: str) -> None:
        self._on_line(line)
        text = line.strip()
        named = _DERIVATION.search(text) if text.startswith("error: ") else None
        if named is not None and named[0] not in self._reasons:
            self._last = named[0]
            self._reasons[self._last] = text.removeprefix("error: ").rstrip(";")
        elif self._last is not None and text.startswith("Reason: "):
            # Newer versions tell it on the next line.
            self._reasons[self._last] += f" {text}"
            self._last = None

    def find(self, drv_path: StorePath) -> str | None:
        return self._reasons.get(drv_path.base_name)
