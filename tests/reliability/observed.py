"""What a cell is given, what it observes, and everything that leaves the process meanwhile."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import aiohttp

from nixcache_oci.cli.log import LogfmtFormatter
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import Error
from nixcache_oci.oci.reference import RegistryReference
from tests.reliability.caches import NAME, Step
from tests.reliability.faults import FAULTS, OPERATIONS, REFUSED, Target
from tests.support.ghcr import GhcrDouble

# Shortened by the arguments that every client takes: the rules are the same as with half a minute.
PATIENCE_SECONDS: Final = 6.0
STALL_SECONDS: Final = 2.0
FIRST_BACKOFF_SECONDS: Final = 0.02
_SMALL_AFTER: Final = 20  # bytes: inside the smallest table, manifest and token
NAR_AFTER: Final = 10_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a fault.

    Attributes:
        kind: such as ``recovers``.
        said: what anybody was told, in full.
    """

    kind: str
    said: str = ""


@dataclass(slots=True)
class Outside:
    """Collects what left the process.

    Attributes:
        texts: bodies that clients got, and errors' lines.
        secrets: what must be in none of them.
    """

    texts: list[str] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set)


class LogLines(logging.Handler):
    """Keeps every record of every logger as the line that it becomes, traceback and all."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(LogfmtFormatter(is_journal=False))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "aiohttp.access":  # what the double says; the program switches it off
            self.lines.append(self.format(record))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear everything, at the lowest level."""
        root = logging.getLogger()
        level = root.level
        root.addHandler(self)
        root.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            root.removeHandler(self)
            root.setLevel(level)

    def about(self, host: str) -> str:
        """All that was said of one registry."""
        return " | ".join(line for line in self.lines if host in line)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a cell works with, all of it its own but steps, session and log.

    Attributes:
        ghcr: its registry.
        operation: where its fault strikes.
        fault: what goes wrong.
        folder: for its files.
        steps: what the registry holds from time to time.
        http: asks its proxy.
        log: of all cells.
        outside: what left the process.
        patience: of its clients, in seconds.
        stall: how long a connection may stand still, in seconds.
    """

    ghcr: GhcrDouble
    operation: str
    fault: str
    folder: Path
    steps: list[Step]
    http: aiohttp.ClientSession
    log: LogLines
    outside: Outside
    patience: float = PATIENCE_SECONDS
    stall: float = STALL_SECONDS

    @property
    def credentials(self) -> Credentials:
        return Credentials(self.ghcr.user, self.ghcr.token, "NIXCACHE_TOKEN_FILE")

    @property
    def reference(self) -> RegistryReference:
        return RegistryReference(self.ghcr.host, plain_http=True, repository=NAME)

    def client(self, *, push: bool = False, delete: bool = False, host: str | None = None) -> Registry:
        """Make a client that gives up within seconds; the caller closes it."""
        return Registry(
            replace(self.reference, host=host or self.ghcr.host),
            self.credentials,
            push=push,
            delete=delete,
            patience=self.patience,
            stall_seconds=self.stall,
            first_backoff_seconds=FIRST_BACKOFF_SECONDS,
        )

    def arm(self, times: int | None, *, after: int = _SMALL_AFTER) -> None:
        """Let the fault strike from now on.

        Args:
            times: requests that are hit; None for all, until ``disarm``.
            after: bytes of a body that still come through.
        """
        if self.fault == REFUSED:
            self.ghcr.stop()
            return
        if self.operation == "token":
            self.ghcr.expire_tokens()
            after = _SMALL_AFTER
        FAULTS[self.fault](self.ghcr, Target(OPERATIONS[self.operation], after, times))

    def disarm(self) -> None:
        """Let the registry be well again."""
        if self.fault == REFUSED:
            self.ghcr.start()
        self.ghcr.clear_faults()

    def tell(self, error: Error) -> str:
        """Keep what a user is told: one line."""
        line = str(error)
        assert "\n" not in line
        self.outside.texts.append(line)
        return line
