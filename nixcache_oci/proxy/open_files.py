"""How many files may be open, and what for: a client is one, and what the registry sends for it is another.

Systems begin programs with a low limit, often 1,024, for the sake of select(), which nothing here uses, and
let them raise it. Source: getrlimit(2); systemd.exec(5), LimitNOFILE.
"""

import resource
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from nixcache_oci.proxy.nar_streams import MOST_STREAMS

MOST_FILES: Final = 65_536

MOST_CONNECTIONS: Final = 4096
"""Of clients, where there are enough files: each takes about 12 KiB."""

# The index folder, packs on their way, logs, and what libraries open.
_OTHERS: Final = 64
# What a NAR that streams takes besides its client's: a connection to the registry and one to the storage; and
# as much again for narinfos that are asked of upstreams.
_FILES_OF_A_STREAM: Final = 4
_SHARE_OF_STREAMS: Final = 8
_FEWEST: Final = 16


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a limit on open files is shared out to.

    Attributes:
        connections: of clients.
        streams: NARs that stream at once, and narinfos that are asked of upstreams at once.
    """

    connections: int
    streams: int


def share_out(files: int) -> ConnectionLimits:
    """Decide how many connections and streams a limit on open files leaves room for."""
    streams = max(_FEWEST, min(MOST_STREAMS, files // _SHARE_OF_STREAMS))
    left = files - _OTHERS - _FILES_OF_A_STREAM * streams
    return ConnectionLimits(connections=max(_FEWEST, min(MOST_CONNECTIONS, left)), streams=streams)


def current_limits() -> ConnectionLimits:
    """Share the present limit on open files out."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return share_out(MOST_FILES if soft == resource.RLIM_INFINITY else soft)


def allow_many_files() -> None:
    """Raise the limit as far as the system lets a program, and no further than is of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(OSError, ValueError):  # some systems have another bound, and do not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
