"""Runs this machine's Nix programs, of any version, with the same settings for every call."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from nixcache_oci.clients.local_store.program import Ended, OnLine, run_program
from nixcache_oci.errors import StoreError, UsageError

Version = tuple[int, int, int]

_FIRST_WITH_COMMANDS: Final = (2, 4, 0)
_LIX_BRANCHED_OFF: Final = (2, 18, 0)
_VERSION = re.compile(r"\) (\d+)\.(\d+)(?:\.(\d+))?")
# Switched off unless nix.conf says otherwise.
_FEATURES = ("--extra-experimental-features", "nix-command flakes")


def parse_version(text: str) -> Version:
    """Read what ``nix --version`` prints, such as ``nix (Nix) 2.8.0``; StoreError if it contains no version.

    Lix, whose versions begin at 2.90, counts as the Nix that it was forked from.
    """
    match = _VERSION.search(text)
    if match is None:
        raise StoreError(f"nix --version: expected nix (Nix) <version>, got {text.strip()[:80]!r}")
    return _LIX_BRANCHED_OFF if "Lix" in text else (int(match[1]), int(match[2]), int(match[3] or 0))


class Nix:
    """Runs ``nix`` and ``nix-store``.

    Args:
        environment: of this process; PATH says where the programs are.
        on_line: gets each line of their standard error as it comes.
        options: names and values for ``--option``, which override nix.conf.
    """

    def __init__(
        self, environment: Mapping[str, str], on_line: OnLine, options: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.environment = environment
        self.on_line = on_line
        self._options = [word for name, value in options for word in ("--option", name, value)]
        self._version: Version | None = None

    async def version(self) -> Version | None:
        """Return the version of ``nix``; None if it is missing, or older than 2.4, StoreError if unstated."""
        if self._version is None:
            try:
                ended = await run_program("nix", ["--version"], self.environment, self.on_line)
            except UsageError:
                return None
            version = parse_version(_check(ended, "nix --version").decode(errors="replace"))
            self._version = version if version >= _FIRST_WITH_COMMANDS else None
        return self._version

    async def require_version(self) -> Version:
        """Return the version of the ``nix`` command; UsageError if it is missing, or too old."""
        version = await self.version()
        if version is None:
            raise UsageError(
                "nix: no such program in PATH, or one before 2.4, which cannot do this; install a newer one "
                "(https://nixos.org/download), or add its folder to PATH"
            )
        return version

    async def attempt(
        self, *arguments: str, on_line: OnLine | None = None, folder: Path | None = None
    ) -> Ended:
        """Run ``nix``, and return how it ended; a failure is no error here.

        It runs in ``folder``, or in the current one; ``on_line`` is instead of the usual one.
        """
        words = [*_FEATURES, *self._options, *arguments]
        return await run_program("nix", words, self.environment, on_line or self.on_line, folder=folder)

    async def ask(self, *arguments: str, folder: Path | None = None) -> bytes:
        """Run ``nix``, and return its standard output; StoreError if it failed."""
        return _check(await self.attempt(*arguments, folder=folder), f"nix {arguments[0]}")

    async def ask_old(self, program: str, *arguments: str, on_line: OnLine | None = None) -> bytes:
        """Run an older program, such as ``nix-store``, and return its output; StoreError if it failed."""
        words = [*self._options, *arguments]
        ended = await run_program(program, words, self.environment, on_line or self.on_line)
        return _check(ended, f"{program} {arguments[0]}")


def _check(ended: Ended, what: str) -> bytes:
    if ended.status < 0:
        raise StoreError(f"{what}: was ended by signal {-ended.status}, and said last: {ended.reason}")
    if ended.status:
        raise StoreError(f"{what}: {ended.reason}")
    return ended.stdout
