"""The credentials of one repository while the program runs: files are read again when they change.

Some tokens live for hours, and a proxy for months: a new token in the file, or a new login, needs no restart.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final, TypeAlias

from nixcache_oci.clients.auth_file import Helper, ask_helper, find_auth_files, search_auth_file
from nixcache_oci.clients.credentials import TOKEN_FILE_VARIABLE, Credentials, choose_variable, parse_token
from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.errors import UsageError

LOOK_SECONDS: Final = 2.0
"""Between two checks of the files."""

_HELPER_SECONDS: Final = 10.0  # between two runs of a helper whose answer was refused
_MOST_BYTES: Final = 1024 * 1024  # of a file

_Stamp: TypeAlias = tuple[int, int, int] | None

_log = logging.getLogger(__name__)


class Keyring:
    """Finds credentials for a repository at ``host[:port]``, in the order that module ``credentials`` states.

    Raises UsageError if the token file cannot be read, or holds no token.
    """

    def __init__(
        self,
        host: str,
        repository: str,
        environment: Mapping[str, str],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._host = host
        self._repository = repository
        self._environment = environment
        self._clock = clock
        self._lock = asyncio.Lock()
        self._of_variable = choose_variable(host, environment)
        token_file = environment.get(TOKEN_FILE_VARIABLE, "").strip()
        self._token_file = Path(token_file) if token_file else None
        if self._token_file is not None:
            self._files: tuple[Path, ...] = (self._token_file,)
        else:
            self._files = () if self._of_variable is not None else find_auth_files(environment)
        self._stamps = self._stamp()
        self._candidates = self._read()
        self._looked = clock()
        self._asked_helper: float | None = None
        self._current: Credentials | None = None
        self._is_chosen = False
        self._complaint: str | None = None

    @property
    def current(self) -> Credentials | None:
        """The credentials found last; before the first ``find``, those that need no helper."""
        if self._is_chosen:
            return self._current
        first = next(iter(self._candidates), None)
        return first if isinstance(first, Credentials) else None

    async def find(self, *, refused: Credentials | None = None) -> Credentials | None:
        """Return the current credentials; None means anonymous.

        After the registry refused ``refused``, files are checked at once, and a helper may be asked again.
        """
        if self._is_chosen and refused is None and self._clock() - self._looked < LOOK_SECONDS:
            return self._current
        async with self._lock:
            is_new = bool(self._files) and await asyncio.to_thread(self._look)
            self._looked = self._clock()
            if not self._is_chosen or is_new or self._is_helper_worth_asking(refused):
                self._current = await self._choose()
                self._is_chosen = True
            return self._current

    def _is_helper_worth_asking(self, refused: Credentials | None) -> bool:
        return (
            refused is not None
            and refused == self._current
            and self._asked_helper is not None
            and self._clock() - self._asked_helper >= _HELPER_SECONDS
        )

    async def _choose(self) -> Credentials | None:
        self._asked_helper = None
        for candidate in self._candidates:
            if isinstance(candidate, Credentials):
                return candidate
            self._asked_helper = self._clock()
            found = await ask_helper(candidate, self._environment)
            if found is not None:
                return found
        return None

    def _look(self) -> bool:
        """Read the files again if one changed, and tell whether it did. Blocks."""
        stamps = self._stamp()
        if stamps == self._stamps:
            return False
        try:
            self._candidates = self._read()
        except UsageError as error:
            # It may be half written.
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.warning("%s; continuing with its previous content", error)
            return False
        self._stamps, self._complaint = stamps, None
        return True

    def _stamp(self) -> list[_Stamp]:
        return [_stamp(path) for path in self._files]

    def _read(self) -> list[Credentials | Helper]:
        if self._token_file is not None:
            return [_read_token_file(self._token_file)]
        if self._of_variable is not None:
            return [self._of_variable]
        found: list[Credentials | Helper] = []
        for path in self._files:
            text = _read_auth_file(path)
            if text is not None:
                found += search_auth_file(text, str(path), self._host, self._repository)
        return found


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read_token_file(path: Path) -> Credentials:
    try:
        text = _read_text(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{TOKEN_FILE_VARIABLE}: {path} cannot be read: {_reason(error)}") from None
    found = parse_token(text, f"{TOKEN_FILE_VARIABLE}: {path}")
    return replace(found, source=f"{TOKEN_FILE_VARIABLE} ({path})")


def _read_auth_file(path: Path) -> str | None:
    try:
        return _read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        _log.warning("%s cannot be read (%s): continuing without it", path, _reason(error))
        return None


def _read_text(path: Path) -> str:
    content = read_small(path, _MOST_BYTES)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"over {_MOST_BYTES} bytes")
    return content.decode("utf-8-sig")


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or os.strerror(error.errno or 0)
    return "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
