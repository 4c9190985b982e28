"""The load generator, a process of its own: many clients at once, each of which checks what it is given.

    python -m tests.soak.traffic --proxy HOST:PORT --catalogue FOLDER --seconds N --connections N --seed TEXT

prints its report as one line of JSON. A NAR is right, or cut, or 404; whatever else comes is a failure.
"""

import argparse
import asyncio
import hashlib
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import uvloop

from nixcache_oci.cache.pack import fits_pack
from nixcache_oci.nix.narinfo import NarInfo
from tests.soak.catalogue import Catalogue, Wanted, differs
from tests.soak.line import CutError, Head, Limits, Line, NoAnswerError
from tests.support.objects import hash_part_of

_MOST_FAILURES: Final = 30
_PIECE_BYTES: Final = 64 * 1024
_LAG_SECONDS: Final = 0.1
_NOT_FOUND: Final = 404
_PARTIAL: Final = 206


@dataclass(slots=True)
class Report:
    """What the clients saw.

    Attributes:
        outcomes: how often each came of a request, ``<kind>: <outcome>``.
        failures: what must not be; the first few of them.
        failed: how many there were.
        longest_wait_seconds: for a head, or for the next piece of a body.
        most_connections: open at once.
        connections: median.
        nars_in_flight: median; a NAR is in flight from its request to its last byte.
        most_nars_in_flight: at once.
        requests: answered.
        nar_bytes: received.
        cpu_share: of one core that this process took.
        lag_p99_seconds: how late this process was itself, once in a hundred times.
        peak_bytes: of memory that this process took.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    longest_wait_seconds: float = 0.0
    most_connections: int = 0
    connections: int = 0
    nars_in_flight: int = 0
    most_nars_in_flight: int = 0
    requests: int = 0
    nar_bytes: int = 0
    cpu_share: float = 0.0
    lag_p99_seconds: float = 0.0
    peak_bytes: int = 0


class Traffic:
    """All clients.

    Args:
        host: of the proxy.
        catalogue: what is right.
        limits: of all waits.
        seed: of what is drawn.
        seconds: until nobody begins anything new.
        transfer_seconds: the least and the most that a client takes to read a NAR.
    """

    def __init__(
        self,
        host: str,
        catalogue: Catalogue,
        limits: Limits,
        seed: str,
        *,
        seconds: float,
        transfer_seconds: tuple[float, float],
    ) -> None:
        self.report = Report()
        self._host = host
        self._catalogue = catalogue
        self._limits = limits
        self._seed = seed
        self._transfer_seconds = transfer_seconds
        self._until = time.monotonic() + seconds
        self._in_flight = 0
        self._outcomes: Counter[str] = Counter()
        self._samples: list[tuple[int, int, float]] = []  # connections, NARs in flight, lag
        own = [each for each in catalogue.wanted if each.origin != "upstream"]
        self._kept = [each for each in own if each.origin == "kept"]
        self._upstream = [each for each in catalogue.wanted if each.origin == "upstream"]
        self._all = own + self._upstream
        self._blobs = [each for each in own if not fits_pack(each.file_size)]
        self._slices = [each for each in own if fits_pack(each.file_size)]

    async def run(self, connections: int) -> Report:
        """Let the clients work until the time is over, and each request that began has ended."""
        shares: tuple[tuple[Callable[[Line, random.Random], Awaitable[None]], float], ...] = (
            (self._download, 0.21),
            (self._ask_narinfos, 0.51),
            (self._pipeline, 0.04),
            (self._hang_up, 0.08),
            (self._half_open, 0.12),
            (self._look, 0.04),
        )
        sampling = asyncio.create_task(self._sample())
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for action, share in shares:
                for number in range(max(1, round(share * connections))):
                    group.create_task(self._client(action, f"{self._seed}-{action.__name__}-{number}"))
        sampling.cancel()
        self._sum_up(time.monotonic() - began)
        return self.report

    async def _client(self, action: Callable[[Line, random.Random], Awaitable[None]], seed: str) -> None:
        """Do one thing again and again, on one connection for as long as it lasts."""
        chosen = random.Random(seed)
        line = Line(self._host, self._limits)
        await asyncio.sleep(chosen.uniform(0, min(5.0, max(0.0, self._until - time.monotonic()) / 4)))
        while time.monotonic() < self._until:
            try:
                await action(line, chosen)
            except NoAnswerError as error:
                self._fail("no answer", str(error))
                await asyncio.sleep(1)
            except CutError:
                # Only NARs may be cut, and there it is caught.
                self._fail("cut", f"a short answer in {action.__name__}")
        line.close()

    # Narinfos

    async def _ask_narinfos(self, line: Line, chosen: random.Random) -> None:
        await asyncio.sleep(chosen.uniform(0.1, 0.9))
        method = "HEAD" if chosen.random() < 0.2 else "GET"
        drawn = chosen.random()
        if drawn < 0.15:
            await self._miss(line, chosen, method)
            return
        wanted = chosen.choice(self._upstream if drawn < 0.2 else self._kept if drawn < 0.9 else self._all)
        await self._narinfo(line, wanted, method)

    async def _miss(self, line: Line, chosen: random.Random, method: str) -> None:
        head = await line.ask(method, f"/{hash_part_of(str(chosen.random()))}.narinfo")
        await line.body(head)
        self._count("narinfo of nobody", "404", is_right=head.status == _NOT_FOUND, said=str(head.status))

    async def _narinfo(self, line: Line, wanted: Wanted, method: str = "GET") -> NarInfo | None:
        """Ask for one; what is listed from the start must be there, whatever the registry does."""
        head = await line.ask(method, f"/{wanted.hash_part}.narinfo")
        return self._validate(wanted, head, await line.body(head), method)

    def _validate(self, wanted: Wanted, head: Head, body: bytes, method: str) -> NarInfo | None:
        kind = f"narinfo, {wanted.origin}"
        if head.status == _NOT_FOUND and wanted.origin != "kept":
            self._count(kind, "404")
            return None
        if head.status != 200 or method == "HEAD":
            self._count(kind, "right", is_right=head.status == 200, said=str(head.status))
            return None
        wrong = differs(wanted, body)
        self._count(kind, "right", is_right=wrong is None, said=wrong or "")
        return NarInfo.parse(body)

    async def _pipeline(self, line: Line, chosen: random.Random) -> None:
        """Several requests at once on one connection: the answers come in their order."""
        await asyncio.sleep(chosen.uniform(0.5, 2))
        asked = [chosen.choice(self._kept) for _ in range(chosen.randint(2, 8))]
        requests = [f"GET /{each.hash_part}.narinfo HTTP/1.1\r\nHost: {self._host}\r\n\r\n" for each in asked]
        await line.send("".join(requests).encode())
        for each in asked:
            head = await line.head("GET", each.hash_part)
            self._validate(each, head, await line.body(head), "GET")

    # NARs

    async def _download(self, line: Line, chosen: random.Random) -> None:
        (among,) = chosen.choices((self._blobs, self._slices, self._upstream), (50, 35, 15))
        wanted = chosen.choice(among)
        narinfo = await self._narinfo(line, wanted)
        if narinfo is None:
            await asyncio.sleep(0.5)
            return
        path = f"/{narinfo.url}"
        kind = "NAR, upstream" if wanted.origin == "upstream" else "NAR, pack" if "-" in path else "NAR, blob"
        self._in_flight += 1
        try:
            drawn = chosen.random()
            if drawn < 0.1:
                await self._size(line, wanted, path, kind)
            elif drawn < 0.25:
                await self._part(line, wanted, path, kind, chosen)
            else:
                await self._whole(line, wanted, path, kind, chosen, is_resuming=drawn < 0.45)
        finally:
            self._in_flight -= 1

    async def _size(self, line: Line, wanted: Wanted, path: str, kind: str) -> None:
        head = await line.ask("HEAD", path)
        told = int(head.headers.get("content-length", "-1"))
        is_there = head.status != _NOT_FOUND
        is_right = not is_there or (head.status == 200 and told == wanted.file_size)
        self._count(f"{kind}, HEAD", "right" if is_there else "404", is_right=is_right, said=f"{head}")

    async def _part(self, line: Line, wanted: Wanted, path: str, kind: str, chosen: random.Random) -> None:
        start = chosen.randrange(wanted.file_size)
        end = chosen.randint(start + 1, wanted.file_size)
        head = await line.ask("GET", path, Range=f"bytes={start}-{end - 1}")
        received, is_whole = await self._read(line, head, chosen)
        if head.status == _NOT_FOUND:
            self._count(f"{kind}, part", "404")
        elif not is_whole:
            self._count(f"{kind}, part", "cut")
        elif head.size != end - start or head.status not in {200, _PARTIAL}:
            self._count(f"{kind}, part", "wrong", is_right=False, said=f"{head} for {start}-{end}")
        else:
            with self._catalogue.path(wanted).open("rb") as file:
                file.seek(start)
                is_right = file.read(end - start) == received
            self._count(f"{kind}, part", "right" if is_right else "wrong bytes")

    async def _whole(
        self, line: Line, wanted: Wanted, path: str, kind: str, chosen: random.Random, *, is_resuming: bool
    ) -> None:
        """Download it all, or break off and resume as Nix does."""
        head = await line.ask("GET", path)
        stop = chosen.randrange(wanted.file_size) if is_resuming else wanted.file_size
        received, is_whole = await self._read(line, head, chosen, stop)
        if head.status == _NOT_FOUND:
            self._count(kind, "404")
        elif head.status != 200:
            self._count(kind, "wrong", is_right=False, said=f"{head}")
        elif is_whole and not is_resuming:
            # Where a length was wrong, too, this is where it shows.
            is_right = hashlib.sha256(received).hexdigest() == wanted.file_hex
            self._count(kind, "whole and right", is_right=is_right, said=f"{path} is whole and wrong")
        else:
            if not is_resuming:
                self._count(kind, "cut")
            line.close(reset=chosen.random() < 0.5)
            await self._resume(line, wanted, path, kind, received, chosen)

    async def _resume(
        self, line: Line, wanted: Wanted, path: str, kind: str, received: bytes, chosen: random.Random
    ) -> None:
        kind += ", resumed"
        if not len(received) < wanted.file_size:
            return
        head = await line.ask("GET", path, Range=f"bytes={len(received)}-")
        rest, is_whole = await self._read(line, head, chosen)
        if head.status == _NOT_FOUND:
            self._count(kind, "404")
        elif not is_whole:
            self._count(kind, "cut")
        else:
            whole = rest if head.status == 200 else received + rest
            is_right = hashlib.sha256(whole).hexdigest() == wanted.file_hex
            # The part is passed on unchecked, and so is the beginning that was broken off.
            self._count(kind, "right" if is_right else "wrong bytes")

    async def _read(
        self, line: Line, head: Head, chosen: random.Random, stop: int | None = None
    ) -> tuple[bytes, bool]:
        """Read a body as slowly as a line far away gives it; tells whether it came whole, or up to there."""
        seconds = chosen.uniform(*self._transfer_seconds) if head.status != _NOT_FOUND else 0.0
        end = head.size if stop is None else min(stop, head.size)
        pause = seconds / (end // _PIECE_BYTES + 1)
        received = bytearray()
        while len(received) < end:
            await asyncio.sleep(pause)
            try:
                received += await line.piece(end - len(received))
            except CutError:
                break
        self.report.nar_bytes += len(received)
        return bytes(received), len(received) == end

    # Bad manners, and operators

    async def _hang_up(self, line: Line, chosen: random.Random) -> None:
        """Ask, and go away: before the answer, in the middle of it, or in the middle of the request."""
        wanted = chosen.choice(self._all)
        narinfo = await self._narinfo(line, wanted)
        path = f"/{narinfo.url}" if narinfo else f"/{wanted.hash_part}.narinfo"
        request = f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode()
        drawn = chosen.random()
        await line.send(request if drawn > 0.2 else request[: chosen.randrange(1, len(request))])
        await asyncio.sleep(chosen.choice([0, 0, 0.01, 0.5]))
        if drawn > 0.6:
            head = await line.head("GET", path)
            if head.size:
                try:
                    await line.piece(head.size)
                except CutError:
                    self._count("hung up", "cut before")
        line.close(reset=chosen.random() < 0.5)
        self._count("hung up", "done")
        await asyncio.sleep(chosen.uniform(0.5, 3))

    async def _half_open(self, line: Line, chosen: random.Random) -> None:
        """Say half of something, and nothing more for long."""
        await line.send(
            chosen.choice([b"", b"G", b"GET /nix-cache-info HTTP/1.1\r\nHost: x", b"\x16\x03\x01"])
        )
        await asyncio.sleep(min(chosen.uniform(3, 25), max(0.1, self._until - time.monotonic())))
        line.close(reset=chosen.random() < 0.3)
        self._count("half-open", "done")

    async def _look(self, line: Line, chosen: random.Random) -> None:
        await asyncio.sleep(chosen.uniform(1, 4))
        method, path = chosen.choice(
            [("GET", "/_status"), ("GET", "/metrics"), ("GET", "/nix-cache-info"), ("HEAD", "/health")]
        )
        if chosen.random() < 0.02:
            method, path = "POST", "/_refresh"
        head = await line.ask(method, path)
        await line.body(head)
        # A refresh says so where the registry could not be read.
        is_right = head.status == 200 or method == "POST"
        self._count(path, str(head.status), is_right=is_right, said=f"{head.status}")

    # What came of it

    def _count(self, kind: str, outcome: str, *, is_right: bool = True, said: str = "") -> None:
        self.report.requests += 1
        self._outcomes[f"{kind}: {outcome}" if is_right else f"{kind}: FAILED"] += 1
        if not is_right:
            self._fail(kind, said)

    def _fail(self, kind: str, said: str) -> None:
        self.report.failed += 1
        if len(self.report.failures) < _MOST_FAILURES:
            self.report.failures.append(f"{kind}: {said}")

    async def _sample(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(_LAG_SECONDS)
            lag = time.monotonic() - began - _LAG_SECONDS
            if time.monotonic() < self._until:
                self._samples.append((self._limits.open, self._in_flight, lag))

    def _sum_up(self, seconds: float) -> None:
        report, usage = self.report, resource.getrusage(resource.RUSAGE_SELF)
        connections, in_flight, lags = (sorted(each) for each in zip(*self._samples, strict=True))
        report.outcomes = dict(sorted(self._outcomes.items()))
        report.longest_wait_seconds = round(self._limits.longest_seconds, 1)
        report.most_connections = self._limits.most_open
        report.connections = int(connections[len(connections) // 2])
        report.nars_in_flight = int(in_flight[len(in_flight) // 2])
        report.most_nars_in_flight = int(in_flight[-1])
        report.cpu_share = round((usage.ru_utime + usage.ru_stime) / seconds, 2)
        report.lag_p99_seconds = round(lags[len(lags) * 99 // 100], 3)
        report.peak_bytes = usage.ru_maxrss * 1024


def main() -> None:
    """Make the load, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.traffic", description=__doc__)
    parser.add_argument("--proxy", required=True)
    parser.add_argument("--catalogue", required=True, type=Path)
    parser.add_argument("--seconds", required=True, type=float)
    parser.add_argument("--connections", required=True, type=int)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--wait-seconds", required=True, type=float)
    parser.add_argument("--transfer-seconds", required=True, type=float, nargs=2)
    options = parser.parse_args()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    catalogue = Catalogue.read(options.catalogue)
    limits = Limits(options.wait_seconds)

    least, most = options.transfer_seconds

    async def run() -> Report:
        traffic = Traffic(
            options.proxy,
            catalogue,
            limits,
            options.seed,
            seconds=options.seconds,
            transfer_seconds=(least, most),
        )
        return await traffic.run(options.connections)

    sys.stdout.write(json.dumps(asdict(uvloop.run(run()))) + "\n")


if __name__ == "__main__":
    main()
