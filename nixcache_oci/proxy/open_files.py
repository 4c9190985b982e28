"""The limit of open files, shared out to clients and to connections to the registry.

Systems start programs with a low limit, often 1,024, because of select(), which is not used here, and let
them raise it. Source: getrlimit(2); systemd.exec(5), LimitNOFILE.
"""

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nixcache_oci.proxy.nar_streams import MOST_STREAMS

MOST_FILES: Final = 65_536

MOST_CONNECTIONS: Final = 4096
"""Clients, if there are enough files: each takes about 12 KiB."""

# The index folder and tables in transit, fewer of them where there are few files; logs, and libraries.
_OTHERS: Final = 24
_SHARE_OF_OTHERS: Final = 8
_MOST_OTHERS: Final = 64
# Per stream, besides its client's: a connection to the registry and one to its storage; and as much again for
# upstream look-ups.
_FILES_OF_A_STREAM: Final = 4
_SHARE_OF_STREAMS: Final = 7
_FEWEST_STREAMS: Final = 2
_FEWEST_CONNECTIONS: Final = 8


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits by kind of connection.

    Attributes:
        connections: of clients.
        streams: concurrent NARs, and concurrent upstream look-ups.
    """

    connections: int
    streams: int


def share_out(files: int) -> ConnectionLimits:
    """Divide a limit of open files into connections and streams."""
    left = files - min(_MOST_OTHERS, _OTHERS + files // _SHARE_OF_OTHERS)
    streams = max(_FEWEST_STREAMS, min(MOST_STREAMS, left // _SHARE_OF_STREAMS))
    left -= _FILES_OF_A_STREAM * streams
    return ConnectionLimits(max(_FEWEST_CONNECTIONS, min(MOST_CONNECTIONS, left)), streams)


def current_limits() -> ConnectionLimits:
    """Divide the current limit of open files."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return share_out(MOST_FILES if soft == resource.RLIM_INFINITY else soft)


def allow_many_files() -> None:
    """Raise the limit as far as the system allows, and as is useful."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(OSError, ValueError):  # some systems have another, hidden bound
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
