"""Builds outputs, and finds out which of them exist afterwards."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nixcache_oci.clients.local_store.output import Installable, Output
from nixcache_oci.clients.local_store.program import Ended, OnLine, ignore_line
from nixcache_oci.clients.local_store.store import LocalStore
from nixcache_oci.errors import StoreError
from nixcache_oci.nix.store_path import StorePath

_FIRST_WITH_CARET: Final = (2, 13, 0)
_QUERIES_AT_ONCE: Final = 4
MOST_CALLS: Final = 1000
"""Calls of Nix for one build: each leaves fewer derivations, but a Nix that always fails is given up."""

_FURTHER: Final = ("Reason: ", "Required system: ")
_DERIVATION = re.compile(r"[^\s'\"/]+\.drv")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What became of the outputs, by attribute."""

    # All store paths of each that exists now, whether built, fetched, or there before.
    built: Mapping[str, tuple[StorePath, ...]]
    failed: Mapping[str, str]  # why each other one does not, in one line; Nix's own messages were shown


async def build(
    store: LocalStore, outputs: Sequence[Output], *, accept_flake_config: bool = False
) -> BuildResult:
    """Build all of them, with logs on standard error. A failed build is no error here.

    Args:
        store: to build in; its Nix has options for substituters and keys.
        outputs: to build.
        accept_flake_config: whether the flake's own settings, such as substituters, are obeyed.

    Raises:
        UsageError: Nix is missing, or too old.
        StoreError: Nix cannot say what was built.
    """
    if not outputs:
        return BuildResult({}, {})
    suffix = "^*" if await store.nix.require_version() >= _FIRST_WITH_CARET else ""
    # Nix reads a flake's settings when it is asked for one of its attributes.
    named = [output.installable for output in outputs if output.installable is not None]
    run = _Builds(store, suffix, named[0] if named and accept_flake_config else None)
    await run.build(list(dict.fromkeys(output.drv_path for output in outputs)))
    return BuildResult(
        {output.attr: run.built[output.drv_path] for output in outputs if output.drv_path in run.built},
        {output.attr: run.find_reason(output) for output in outputs if output.drv_path not in run.built},
    )


class _Builds:
    """Builds until each derivation exists, or is known to have failed.

    One call of Nix usually builds everything. In some versions, a derivation that no machine can build, or
    that is malformed, ends the whole call, so the rest is asked for again without those that failed. If Nix
    named none, the rest is halved: one derivation's dependency may stop the others.

    ``suffix`` means all outputs of a derivation; the settings of ``flake_attribute``'s flake are obeyed.
    """

    def __init__(self, store: LocalStore, suffix: str, flake_attribute: Installable | None) -> None:
        self.built: dict[StorePath, tuple[StorePath, ...]] = {}
        self._store = store
        self._suffix = suffix
        self._flake_attribute = flake_attribute
        self._named = _Reasons(store.nix.on_line)
        self._alone: dict[StorePath, str] = {}
        self._left = MOST_CALLS

    def find_reason(self, output: Output) -> str:
        """Say in one line why a derivation was not built."""
        path = output.drv_path
        return self._named.find(path) or self._alone.get(path) or "not built; Nix did not say why"

    async def build(self, wanted: Sequence[StorePath]) -> None:
        if not self._left:
            self._alone |= dict.fromkeys(wanted, f"not tried: Nix gave up {MOST_CALLS} times before")
            return
        self._left -= 1
        ended = await self._attempt(wanted)
        if ended.status == 0:
            self.built |= _parse_built(ended.stdout, self._store.store_dir)
            return
        self.built |= await self._find_built(wanted)
        missed = [path for path in wanted if path not in self.built and self._named.find(path) is None]
        if not missed:
            return
        if len(wanted) == 1:
            self._alone |= dict.fromkeys(missed, ended.reason)
        elif len(missed) < len(wanted):
            await self.build(missed)
        else:
            half = len(missed) // 2
            await self.build(missed[:half])
            await self.build(missed[half:])

    async def _attempt(self, wanted: Sequence[StorePath]) -> Ended:
        more, folder = [], None
        if self._flake_attribute is not None:
            more = ["--accept-flake-config", *self._flake_attribute.arguments]
            folder = self._flake_attribute.folder
        return await self._store.nix.attempt(
            *("build", "--json", "--no-link", "--print-build-logs", "--keep-going"),
            *more,
            *(f"{path}{self._suffix}" for path in wanted),
            on_line=self._named,
            folder=folder,
        )

    async def _find_built(self, wanted: Iterable[StorePath]) -> dict[StorePath, tuple[StorePath, ...]]:
        """Find the derivations whose outputs all exist; a failed build says nothing about the others."""
        room = asyncio.Semaphore(_QUERIES_AT_ONCE)
        outputs: dict[StorePath, tuple[StorePath, ...]] = {}

        async def find(path: StorePath) -> None:
            async with room:
                paths = await self._find_outputs(path)
            if paths is not None:
                outputs[path] = paths

        try:
            async with asyncio.TaskGroup() as group:
                for path in wanted:
                    group.create_task(find(path))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        invalid = set(await self._store.find_invalid([path for paths in outputs.values() for path in paths]))
        return {drv_path: paths for drv_path, paths in outputs.items() if invalid.isdisjoint(paths)}

    async def _find_outputs(self, drv_path: StorePath) -> tuple[StorePath, ...] | None:
        """Return the output paths of a derivation, which need not exist; None if they are unknown."""
        nix = self._store.nix
        query = ("nix-store", "--query", "--outputs", str(drv_path))
        with suppress(StoreError):
            output = await nix.ask_old(*query, on_line=ignore_line)
            return tuple(
                StorePath.parse(line, self._store.store_dir) for line in output.decode().splitlines()
            )
        # Content-addressed outputs have a path once they are built: a build that may do nothing prints it.
        ended = await nix.attempt(
            *("build", "--json", "--no-link", "--max-jobs", "0", "--builders", ""),
            *("--option", "substitute", "false", f"{drv_path}{self._suffix}"),
            on_line=ignore_line,
        )
        return _parse_built(ended.stdout, self._store.store_dir).get(drv_path) if ended.status == 0 else None


def _parse_built(content: bytes, store_dir: str) -> dict[StorePath, tuple[StorePath, ...]]:
    """Read what ``nix build --json`` printed; a derivation may appear twice."""
    found: dict[StorePath, dict[StorePath, None]] = {}
    for entry in json.loads(content):
        paths = found.setdefault(StorePath.parse(entry["drvPath"], store_dir), {})
        paths |= {StorePath.parse(path, store_dir): None for path in entry["outputs"].values()}
    return {drv_path: tuple(paths) for drv_path, paths in found.items()}


class _Reasons:
    """Passes lines on, and keeps the first error that names a derivation."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._reasons: dict[str, str] = {}
        self._last: str | None = None

    def __call__(self, line: str) -> None:
        self._on_line(line)
        text = line.strip()
        if text.startswith("error: "):
            named = set(_DERIVATION.findall(text)).difference(self._reasons)
            self._last = named.pop() if len(named) == 1 else None
            if self._last is not None:
                self._reasons[self._last] = text.removeprefix("error: ").rstrip(";")
        elif self._last is not None and text.startswith(_FURTHER):
            # Newer versions print it on separate lines.
            self._reasons[self._last] += f" {text}"

    def find(self, drv_path: StorePath) -> str | None:
        return self._reasons.get(drv_path.base_name)
