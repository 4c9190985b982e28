"""How long narinfos take while something else is done, measured from a process of its own."""

import http.client
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from nixcache_oci.nix.store_path import HashPart


def ask_during(
    host: str, hash_parts: Sequence[HashPart], job: Callable[[], object], *, pause_seconds: float = 0.0
) -> tuple[float, list[float]]:
    """Ask for random narinfos while a job is done; gives its seconds, and those of each request.

    Without a pause between requests, they leave the proxy no time for anything else.
    """
    context = multiprocessing.get_context("spawn")  # this process may have threads: those of a registry
    here, there = context.Pipe()
    asking = context.Process(target=_ask_until_told, args=(host, hash_parts, pause_seconds, there))
    asking.start()
    here.recv()  # it has begun
    begun = time.monotonic()
    try:
        job()
    finally:
        ended = time.monotonic()
        here.send(None)
        asked = here.recv()
        asking.join()
    return ended - begun, [end - start for start, end in asked if end >= begun and start <= ended]


def _ask_until_told(
    host: str, hash_parts: Sequence[HashPart], pause_seconds: float, told: Connection
) -> None:
    """Ask, and tell when each request began and ended."""
    connection = http.client.HTTPConnection(host)
    asked = []
    while not told.poll():
        begun = time.monotonic()
        connection.request("HEAD", f"/{random.choice(hash_parts)}.narinfo")
        connection.getresponse().read()
        asked.append((begun, time.monotonic()))
        if len(asked) == 1:
            told.send(None)
        time.sleep(pause_seconds)
    told.send(asked)
