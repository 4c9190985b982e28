"""A registry that is away again and again."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.ghcr import GhcrDouble

_START_SECONDS = 60.0


@dataclass(slots=True)
class Outages:
    """What was done; in seconds.

    Attributes:
        count: of outages.
        seconds: that they took together.
    """

    count: int = 0
    seconds: float = 0.0


@contextmanager
def outages(
    ghcr: GhcrDouble, *, up: tuple[float, float], down: tuple[float, float], seed: str
) -> Iterator[Outages]:
    """Stop the registry, with all its connections, and start it again, for as long as the block runs.

    Args:
        ghcr: the registry.
        up: the least and the most seconds that it is there.
        down: the least and the most seconds that it is away.
        seed: of what is drawn.
    """
    done = Outages()
    ended = threading.Event()
    chosen = random.Random(seed)

    def go() -> None:
        while not ended.wait(chosen.uniform(*up)):
            began = time.monotonic()
            ghcr.stop()
            ended.wait(chosen.uniform(*down))
            start_again(ghcr)
            done.count += 1
            done.seconds += time.monotonic() - began

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join()


def start_again(ghcr: GhcrDouble) -> None:
    """Start it on its ports, which a client's connection may have been given meanwhile."""
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            ghcr.start()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
