"""The load generator, a process of its own: many clients at once, each of which checks what it is given.

    python -m tests.soak.traffic JSON

takes the arguments of ``Traffic``, and prints its report as one line of JSON. A NAR is right, or cut, or 404;
whatever else comes is a failure.
"""

import asyncio
import hashlib
import json
import random
import resource
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import aiohttp
import uvloop

from nixcache_oci.cache.pack import fits_pack
from nixcache_oci.nix.narinfo import NarInfo
from tests.soak.catalogue import Catalogue, Wanted, differs
from tests.support.objects import hash_part_of

_MOST_FAILURES: Final = 30
_PIECE_BYTES: Final = 64 * 1024
_LAG_SECONDS: Final = 0.1
_NOT_FOUND: Final = 404
_PARTIAL: Final = 206

Session: TypeAlias = aiohttp.ClientSession
Response: TypeAlias = aiohttp.ClientResponse
Action: TypeAlias = Callable[[Session, random.Random], Awaitable[None]]


class Nar(NamedTuple):
    """A NAR that is asked for: what it has to be, where it is, and under which name its outcomes count."""

    wanted: Wanted
    path: str
    kind: str


@dataclass(slots=True)
class Report:
    """What the clients saw.

    Attributes:
        outcomes: how often each came of a request, ``<kind>: <outcome>``.
        failures: what must not be; the first few of them.
        connections: median.
        nars_in_flight: median; a NAR is in flight from its request to its last byte.
        requests: answered.
        nar_bytes: received.
        cpu_share: of one core that this process took.
        lag_p99_seconds: how late this process was itself, once in a hundred times.
    """

    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    connections: int = 0
    nars_in_flight: int = 0
    requests: int = 0
    nar_bytes: int = 0
    cpu_share: float = 0.0
    lag_p99_seconds: float = 0.0


class Traffic:
    """All clients.

    Args:
        host: of the proxy.
        catalogue: folder that says what is right.
        seed: of what is drawn.
        connections: at once.
        seconds: until nobody begins anything new.
        wait_seconds: for the next byte, at the most.
        transfer_seconds: the least and the most that a client takes to read a NAR.
    """

    def __init__(
        self,
        host: str,
        catalogue: str,
        seed: str,
        *,
        connections: int,
        seconds: float,
        wait_seconds: float,
        transfer_seconds: Sequence[float],
    ) -> None:
        self.report = Report()
        self._host = host
        self._catalogue = Catalogue.read(Path(catalogue))
        self._seed = seed
        self._most = connections
        self._wait_seconds = wait_seconds
        self._transfer_seconds = transfer_seconds
        self._until = time.monotonic() + seconds
        self._in_flight = 0
        self._outcomes: Counter[str] = Counter()
        self._samples: list[tuple[int, int, float]] = []  # connections, NARs in flight, lag
        own = [each for each in self._catalogue.wanted if each.origin != "upstream"]
        self._kept = [each for each in own if each.origin == "kept"]
        self._upstream = [each for each in self._catalogue.wanted if each.origin == "upstream"]
        self._all = own + self._upstream
        self._blobs = [each for each in own if not fits_pack(each.file_size)]
        self._slices = [each for each in own if fits_pack(each.file_size)]

    async def run(self) -> Report:
        """Let the clients work until the time is over, and each request that began has ended."""
        shares: tuple[tuple[Action, float], ...] = (
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
                for number in range(max(1, round(share * self._most))):
                    group.create_task(self._client(action, f"{self._seed}-{action.__name__}-{number}"))
        sampling.cancel()
        self._sum_up(time.monotonic() - began)
        return self.report

    async def _client(self, action: Action, seed: str) -> None:
        """Do one thing again and again, on one connection for as long as it lasts."""
        chosen = random.Random(seed)
        limits = aiohttp.ClientTimeout(sock_connect=self._wait_seconds, sock_read=self._wait_seconds)
        await asyncio.sleep(chosen.uniform(0, min(5.0, max(0.0, self._until - time.monotonic()) / 4)))
        async with Session(
            f"http://{self._host}", connector=aiohttp.TCPConnector(limit=1), timeout=limits
        ) as session:
            while time.monotonic() < self._until:
                try:
                    await action(session, chosen)
                except (TimeoutError, aiohttp.ClientError, OSError, EOFError) as error:
                    # Only NARs may be cut, and there it is caught.
                    self._fail(action.__name__, repr(error))
                    await asyncio.sleep(1)

    # Narinfos

    async def _ask_narinfos(self, session: Session, chosen: random.Random) -> None:
        await asyncio.sleep(chosen.uniform(0.1, 0.9))
        method = "HEAD" if chosen.random() < 0.2 else "GET"
        drawn = chosen.random()
        if drawn < 0.15:
            async with session.request(method, f"/{hash_part_of(str(chosen.random()))}.narinfo") as answer:
                self._count("narinfo of nobody", "404", is_right=answer.status == _NOT_FOUND, said=answer)
            return
        wanted = chosen.choice(self._upstream if drawn < 0.2 else self._kept if drawn < 0.9 else self._all)
        await self._narinfo(session, wanted, method)

    async def _narinfo(self, session: Session, wanted: Wanted, method: str = "GET") -> NarInfo | None:
        """Ask for one; what is listed from the start must be there, whatever the registry does."""
        async with session.request(method, f"/{wanted.hash_part}.narinfo") as answer:
            return self._validate(wanted, answer.status, await answer.read(), method)

    def _validate(self, wanted: Wanted, status: int, body: bytes, method: str) -> NarInfo | None:
        kind = f"narinfo, {wanted.origin}"
        if status == _NOT_FOUND and wanted.origin != "kept":
            self._count(kind, "404")
            return None
        if status != 200 or method == "HEAD":
            self._count(kind, "right", is_right=status == 200, said=status)
            return None
        wrong = differs(wanted, body)
        self._count(kind, "right", is_right=wrong is None, said=wrong)
        return NarInfo.parse(body)

    async def _pipeline(self, _session: Session, chosen: random.Random) -> None:
        """Several requests at once on one connection: the answers come in their order."""
        await asyncio.sleep(chosen.uniform(0.5, 2))
        asked = [chosen.choice(self._kept) for _ in range(chosen.randint(2, 8))]
        async with self._connected() as (reader, writer), asyncio.timeout(self._wait_seconds):
            writer.write(b"".join(self._request(f"/{each.hash_part}.narinfo") for each in asked))
            for each in asked:
                status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
                [size] = [line.split()[1] for line in fields if line.lower().startswith("content-length:")]
                self._validate(each, int(status.split()[1]), await reader.readexactly(int(size)), "GET")

    # NARs

    async def _download(self, session: Session, chosen: random.Random) -> None:
        (among,) = chosen.choices((self._blobs, self._slices, self._upstream), (50, 35, 15))
        wanted = chosen.choice(among)
        narinfo = await self._narinfo(session, wanted)
        if narinfo is None:
            await asyncio.sleep(0.5)
            return
        kind = (
            "NAR, upstream"
            if wanted.origin == "upstream"
            else "NAR, pack"
            if "-" in narinfo.url
            else "NAR, blob"
        )
        nar = Nar(wanted, f"/{narinfo.url}", kind)
        self._in_flight += 1
        try:
            drawn = chosen.random()
            if drawn < 0.1:
                await self._size(session, nar)
            elif drawn < 0.25:
                await self._part(session, nar, chosen)
            else:
                await self._whole(session, nar, chosen, is_resuming=drawn < 0.45)
        finally:
            self._in_flight -= 1

    async def _size(self, session: Session, nar: Nar) -> None:
        async with session.head(nar.path) as answer:
            is_there = answer.status != _NOT_FOUND
            is_right = not is_there or (answer.status, answer.content_length) == (200, nar.wanted.file_size)
            self._count(f"{nar.kind}, HEAD", "right" if is_there else "404", is_right=is_right, said=answer)

    async def _part(self, session: Session, nar: Nar, chosen: random.Random) -> None:
        kind = f"{nar.kind}, part"
        start = chosen.randrange(nar.wanted.file_size)
        end = chosen.randint(start + 1, nar.wanted.file_size)
        async with session.get(nar.path, headers={"Range": f"bytes={start}-{end - 1}"}) as answer:
            received, is_whole = await self._read(answer, chosen)
        if answer.status == _NOT_FOUND or not is_whole:
            self._count(kind, "cut" if answer.status != _NOT_FOUND else "404")
        elif answer.content_length != end - start or answer.status not in {200, _PARTIAL}:
            self._count(kind, "wrong", is_right=False, said=f"{answer} for {start}-{end}")
        else:
            right = self._catalogue.path(nar.wanted).read_bytes()[start:end]
            self._count(kind, "right" if received == right else "wrong bytes")

    async def _whole(self, session: Session, nar: Nar, chosen: random.Random, *, is_resuming: bool) -> None:
        """Download it all, or break off and resume as Nix does."""
        size = nar.wanted.file_size
        stop = chosen.randrange(size) if is_resuming else size
        async with session.get(nar.path) as answer:
            received, is_whole = await self._read(answer, chosen, stop)
        if answer.status == _NOT_FOUND:
            self._count(nar.kind, "404")
        elif answer.status != 200:
            self._count(nar.kind, "wrong", is_right=False, said=answer)
        elif is_whole and not is_resuming:
            # Where a length was wrong, too, this is where it shows.
            is_right = hashlib.sha256(received).hexdigest() == nar.wanted.file_hex
            self._count(nar.kind, "whole and right", is_right=is_right, said=f"{nar.path} is whole and wrong")
        else:
            if not is_resuming:
                self._count(nar.kind, "cut")
            if len(received) < size:
                await self._resume(session, nar, received, chosen)

    async def _resume(self, session: Session, nar: Nar, received: bytes, chosen: random.Random) -> None:
        kind = f"{nar.kind}, resumed"
        async with session.get(nar.path, headers={"Range": f"bytes={len(received)}-"}) as answer:
            rest, is_whole = await self._read(answer, chosen)
        if answer.status == _NOT_FOUND or not is_whole:
            self._count(kind, "cut" if answer.status != _NOT_FOUND else "404")
        else:
            whole = rest if answer.status == 200 else received + rest
            is_right = hashlib.sha256(whole).hexdigest() == nar.wanted.file_hex
            # The part is passed on unchecked, and so is the beginning that was broken off.
            self._count(kind, "right" if is_right else "wrong bytes")

    async def _read(
        self, answer: Response, chosen: random.Random, stop: int | None = None
    ) -> tuple[bytes, bool]:
        """Read a body as slowly as a line far away gives it; tells whether it came whole, or up to there."""
        assert answer.content_length is not None
        seconds = chosen.uniform(*self._transfer_seconds) if answer.status != _NOT_FOUND else 0.0
        end = min(answer.content_length, answer.content_length if stop is None else stop)
        pause = seconds / (end // _PIECE_BYTES + 1)
        received = bytearray()
        with suppress(aiohttp.ClientPayloadError, ConnectionError):
            while len(received) < end:
                await asyncio.sleep(pause)
                piece = await answer.content.read(min(_PIECE_BYTES, end - len(received)))
                if not piece:
                    break
                received += piece
        self.report.nar_bytes += len(received)
        return bytes(received), len(received) == end

    # Bad manners, and operators

    @asynccontextmanager
    async def _connected(
        self, *, reset: bool = False
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection that no library minds; hang up at the end, by RST if asked."""
        host, _, port = self._host.partition(":")
        async with asyncio.timeout(self._wait_seconds):
            reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            if reset:
                lingering = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
            writer.transport.abort()

    def _request(self, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode()

    async def _hang_up(self, session: Session, chosen: random.Random) -> None:
        """Ask, and go away: before the answer, in the middle of it, or in the middle of the request."""
        wanted = chosen.choice(self._all)
        narinfo = await self._narinfo(session, wanted)
        request = self._request(f"/{narinfo.url if narinfo else f'{wanted.hash_part}.narinfo'}")
        drawn = chosen.random()
        async with self._connected(reset=chosen.random() < 0.5) as (reader, writer):
            writer.write(request if drawn > 0.2 else request[: chosen.randrange(1, len(request))])
            await asyncio.sleep(chosen.choice([0, 0, 0.01, 0.5]))
            if drawn > 0.6:
                async with asyncio.timeout(self._wait_seconds):
                    await reader.read(_PIECE_BYTES)
        self._count("hung up", "done")
        await asyncio.sleep(chosen.uniform(0.5, 3))

    async def _half_open(self, _session: Session, chosen: random.Random) -> None:
        """Say half of something, and nothing more for long."""
        beginning = chosen.choice([b"", b"G", b"GET /nix-cache-info HTTP/1.1\r\nHost: x", b"\x16\x03\x01"])
        async with self._connected(reset=chosen.random() < 0.3) as (_, writer):
            writer.write(beginning)
            await asyncio.sleep(min(chosen.uniform(3, 25), max(0.1, self._until - time.monotonic())))
        self._count("half-open", "done")

    async def _look(self, session: Session, chosen: random.Random) -> None:
        await asyncio.sleep(chosen.uniform(1, 4))
        method, path = chosen.choice(
            [("GET", "/_status"), ("GET", "/metrics"), ("GET", "/nix-cache-info"), ("HEAD", "/health")]
        )
        if chosen.random() < 0.02:
            method, path = "POST", "/_refresh"
        async with session.request(method, path) as answer:
            await answer.read()
        # A refresh says so where the registry could not be read.
        self._count(path, str(answer.status), is_right=answer.status == 200 or method == "POST", said=answer)

    # What came of it

    def _count(self, kind: str, outcome: str, *, is_right: bool = True, said: object = "") -> None:
        self.report.requests += 1
        self._outcomes[f"{kind}: {outcome}" if is_right else f"{kind}: FAILED"] += 1
        if not is_right:
            self._fail(kind, str(said))

    def _fail(self, kind: str, said: str) -> None:
        if len(self.report.failures) < _MOST_FAILURES:
            self.report.failures.append(f"{kind}: {said}")

    async def _sample(self) -> None:
        base = _open_files()
        while True:
            began = time.monotonic()
            await asyncio.sleep(_LAG_SECONDS)
            lag = time.monotonic() - began - _LAG_SECONDS
            if time.monotonic() < self._until:
                self._samples.append((_open_files() - base, self._in_flight, lag))

    def _sum_up(self, seconds: float) -> None:
        report, usage = self.report, resource.getrusage(resource.RUSAGE_SELF)
        connections, in_flight, lags = (sorted(each) for each in zip(*self._samples, strict=True))
        report.outcomes = dict(sorted(self._outcomes.items()))
        report.connections = int(connections[len(connections) // 2])
        report.nars_in_flight = int(in_flight[len(in_flight) // 2])
        report.cpu_share = round((usage.ru_utime + usage.ru_stime) / seconds, 2)
        report.lag_p99_seconds = round(lags[len(lags) * 99 // 100], 3)


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def _run() -> Report:
    return await Traffic(**json.loads(sys.argv[1])).run()


def main() -> None:
    """Make the load, and report."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    sys.stdout.write(json.dumps(asdict(uvloop.run(_run()))) + "\n")


if __name__ == "__main__":
    main()
