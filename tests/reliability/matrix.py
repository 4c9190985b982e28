"""The fault matrix: its cells as they are expected, and a run of any number of them at once."""

import asyncio
import base64
import os
import secrets
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

import aiohttp

from nixcache_oci.errors import Error
from tests.reliability import proxy_roles, writer_roles
from tests.reliability.caches import Step, make_steps
from tests.reliability.faults import ANYTHING, FAULTS, OPERATIONS, REFUSED, can_happen
from tests.reliability.observed import LogLines, Outcome, Outside, Surroundings
from tests.support.ghcr import GhcrDouble

TABLE: Final = Path(__file__).with_name("fault_matrix.txt")
SECRET_MARK: Final = "ghpSECRET"  # begins every GitHub token of these tests
_AT_ONCE: Final = 16  # more would wait for the processor, and for a first index no longer than a client does
_MOST_SECONDS: Final = 120.0  # what takes longer hangs

Role = Callable[[Surroundings], Awaitable[tuple[Outcome, Outcome]]]
ROLES: Final[Mapping[str, tuple[Role, tuple[str, ...]]]] = {
    "proxy's index": (
        proxy_roles.index,
        ("token", "manifest-head", "manifest-get", "tags", "blob-get", "storage-get"),
    ),
    "proxy's NARs": (proxy_roles.nar, ("token", "blob-head", "blob-get", "storage-get")),
    "proxy's packs": (proxy_roles.pack, ("blob-get", "storage-get")),
    "publisher": (
        writer_roles.publisher,
        (
            *("token", "manifest-head", "manifest-get", "manifest-put", "tags", "blob-head", "blob-get"),
            *("upload-post", "upload-put", "storage-get"),
        ),
    ),
    "gc": (writer_roles.gc, ("manifest-get", "tags", "blob-get", "storage-get")),
    "deletion": (writer_roles.remover, ("token", "manifest-delete", "package-versions", "package-delete")),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One row of the table: a fault that strikes once, and then until it is taken away.

    Attributes:
        role: who asks.
        operation: what is asked.
        fault: what goes wrong.
        once: what comes of one.
        forever: what comes of it while it lasts: a kind, and behind a colon what has to be said.
    """

    role: str
    operation: str
    fault: str
    once: str
    forever: str

    @property
    def name(self) -> str:
        return f"{self.role} / {self.operation} / {self.fault}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a cell came to.

    Attributes:
        once: what came of one fault.
        forever: what came of it while it lasted.
        trouble: what must not happen, and did; empty where all went as it may.
    """

    once: Outcome
    forever: Outcome
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """All cells that were run.

    Attributes:
        seen: by cell.
        outside: what left the process, over all.
        log: every line.
    """

    seen: Mapping[Cell, Seen]
    outside: Outside
    log: LogLines


def read_table() -> list[Cell]:
    """Read the table: parts of two columns, with rows of three, all separated by bars."""
    cells: list[Cell] = []
    role = operation = ""
    for line in TABLE.read_text().splitlines():
        columns = [column.strip() for column in line.split("|")]
        if line.startswith("#") or not line:
            continue
        if len(columns) == 2:
            role, operation = columns
            continue
        faults, once, forever = columns
        for fault in faults.split("; "):
            phrase = HTTPStatus(int(fault)).phrase if fault.isdecimal() else ""
            cells.append(Cell(role, operation, fault, once, forever.replace("STATUS", f"{fault} {phrase}")))
    order = {one: number for number, one in enumerate(all_cells())}
    return sorted(cells, key=lambda cell: order.get((cell.role, cell.operation, cell.fault), -1))


def run_cells(cells: Iterable[Cell]) -> Run:
    """Run cells beside each other, each with a registry, clients and files of its own."""
    log = LogLines()
    with log.listening(), _fast_folder() as folder:
        return asyncio.run(_run_all(list(cells), folder, log))


@contextmanager
def _fast_folder() -> Iterator[Path]:
    """Make a folder for all files, temporary ones among them; in memory where that is, for they are many."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    former = tempfile.tempdir
    with tempfile.TemporaryDirectory(dir=memory, prefix="fault-matrix-") as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = former


async def _run_all(cells: list[Cell], folder: Path, log: LogLines) -> Run:
    outside = Outside()
    steps = await make_steps()
    turns = asyncio.Semaphore(_AT_ONCE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def run(number: int, cell: Cell) -> Seen:
            async with turns:
                place = folder / str(number)
                place.mkdir()
                return await _run_one(cell, place, steps, http, log, outside)

        seen = await asyncio.gather(*(run(number, cell) for number, cell in enumerate(cells)))
    return Run(dict(zip(cells, seen, strict=True)), outside, log)


async def _run_one(
    cell: Cell,
    folder: Path,
    steps: list[Step],
    http: aiohttp.ClientSession,
    log: LogLines,
    outside: Outside,
) -> Seen:
    role, _ = ROLES[cell.role]
    nothing = Outcome("")
    ghcr = GhcrDouble(token=f"{SECRET_MARK}{secrets.token_hex(12)}", user="octocat")
    try:
        with ghcr:
            around = Surroundings(ghcr, cell.operation, cell.fault, folder, steps, http, log, outside)
            try:
                async with asyncio.timeout(_MOST_SECONDS):
                    once, forever = await role(around)
            finally:
                outside.secrets |= ghcr.issued_tokens
                strangers = [each for each in ghcr.requests if each.operation.startswith("storage-")]
                outside.texts += [f"{each.path.partition('?')[0]} {each.headers}" for each in strangers]
    except TimeoutError:
        return Seen(nothing, nothing, "it hangs")
    except (AssertionError, Error, OSError, aiohttp.ClientError, ValueError):
        return Seen(nothing, nothing, traceback.format_exc())
    return Seen(once, forever)


def find_secrets(run: Run) -> list[str]:
    """Find the texts that hold a token, in plain or as Basic has it, or a signed URL."""
    # Three offsets: where in its groups of three bytes base64 meets the mark depends on the user's name.
    marks = {SECRET_MARK, "sig="}
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + SECRET_MARK.encode()).decode()
        marks.add(encoded[4 * (offset > 0) : len(encoded) // 4 * 4 - 4])
    tokens = run.outside.secrets
    texts = [*run.outside.texts, *run.log.lines]
    return [
        text for text in texts if any(mark in text for mark in marks) or not tokens.isdisjoint(_words(text))
    ]


def _words(text: str) -> set[str]:
    return set("".join(letter if letter.isalnum() or letter in "-_" else " " for letter in text).split())


def all_cells() -> list[tuple[str, str, str]]:
    """Every role, operation and fault that there can be, and the table has to have."""
    return [
        (role, operation, fault)
        for role, (_, operations) in ROLES.items()
        for operation in operations
        for fault in FAULTS
        if can_happen(OPERATIONS[operation], fault)
    ] + [(role, ANYTHING, REFUSED) for role in ROLES]
