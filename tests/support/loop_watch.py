"""The program with a watch on the proxy's event loop: how long was it blocked at the worst?

    python -m tests.support.loop_watch REPORT proxy

Blocked time is counted in CPU time between two turns of the loop, so that a machine which is busy with
something else does not count. What other threads did meanwhile counts half: they may have held the
interpreter's lock, or have run beside the loop. REPORT holds the worst so far, in seconds.
"""

import asyncio
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Final, TypeVar

from nixcache_oci.cli import proxy
from nixcache_oci.cli.compose import run_async
from nixcache_oci.cli.main import main

_TURN_SECONDS: Final = 0.005
_T = TypeVar("_T")


async def _watch(report: Path) -> None:
    worst = 0.0
    while True:
        own, all_threads = time.thread_time(), time.process_time()
        await asyncio.sleep(_TURN_SECONDS)
        own = time.thread_time() - own
        blocked = own + (time.process_time() - all_threads - own) / 2
        if blocked > worst:
            worst = blocked
            # In one step, for a test may read it at any moment.
            new = report.with_suffix(".new")
            new.write_text(f"{worst:.4f}")
            os.replace(new, report)  # noqa: PTH105  # the same in fewer calls, for it is part of what is measured


async def _watched(run: Coroutine[object, object, _T], report: Path) -> _T:
    watching = asyncio.create_task(_watch(report), name="loop watch")
    try:
        return await run
    finally:
        watching.cancel()


def _run() -> int:
    report, *arguments = sys.argv[1:]
    # Where the verb looks it up: the watch has to run in the loop that is watched.
    setattr(proxy, "run_async", lambda run: run_async(_watched(run, Path(report))))  # noqa: B010
    return main(arguments)


if __name__ == "__main__":
    sys.exit(_run())
