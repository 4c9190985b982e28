"""How many files may be open: a client is one, and what the registry sends for it is another.

Systems begin programs with a low limit, often 1,024, for the sake of select(), which nothing here uses, and
let them raise it. Source: getrlimit(2); systemd.exec(5), LimitNOFILE.
"""

import resource
from contextlib import suppress
from typing import Final

MOST_FILES: Final = 65_536


def allow_many_files() -> None:
    """Raise the limit as far as the system lets a program, and no further than is of use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(OSError, ValueError):  # some systems have another bound, and do not tell
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
