"""The far side of a load in a process of its own: the double of GHCR, and an upstream cache beside it.

    python -m tests.soak.far_side FOLDER

serves FOLDER as the upstream, and takes one command a line: ``[name, {arguments}]``, each answered by one
line of JSON. It ends with its input.
"""

import asyncio
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.oci.reference import RegistryReference
from tests.support.ghcr import GhcrDouble
from tests.support.ghcr_wire import disconnect
from tests.support.registries import REPO
from tests.support.server_thread import ServerThread

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


_END_SECONDS = 30
_UNAVAILABLE = 503


class FarSide:
    """Starts the process, and speaks to it.

    Args:
        upstream: folder of the upstream cache.
        folder: for its log.

    Attributes:
        host: of the registry.
        upstream_url: of the other cache.
        token: of a user who may do everything; any name goes with it.
    """

    def __init__(self, upstream: Path, folder: Path) -> None:
        self._upstream = upstream
        self._folder = folder

    def __enter__(self) -> Self:
        self._log = (self._folder / "far-side.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.far_side", str(self._upstream)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.host, self.upstream_url, self.token = self._read()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.communicate(timeout=_END_SECONDS)
        self._log.close()
        if self.process.returncode and error is None:
            raise AssertionError((self._folder / "far-side.log").read_text()[-3000:])

    def do(self, name: str, **arguments: object) -> Any:  # noqa: ANN401  JSON, as the command answers
        """Give a command, such as a method of GhcrDouble with its arguments."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()
        return self._read()

    @property
    def settings(self) -> dict[str, str]:
        """What a proxy or publisher is told, but for credentials."""
        return {"NIXCACHE_REGISTRY": self.host, "NIXCACHE_REPO": REPO}

    @property
    def credentials(self) -> Credentials:
        """A user who may do everything."""
        return Credentials("octocat", self.token, "the test")

    def client(self, *, delete: bool = False, patience: float = 20) -> Registry:
        """Make a client that may push; the caller closes it."""
        reference = RegistryReference.of(self.host, REPO, "nix-cache")
        credentials = Credentials("octocat", self.token, "the test")
        return Registry(reference, credentials, push=True, delete=delete, patience=patience)

    def _read(self) -> Any:  # noqa: ANN401  JSON
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError((self._folder / "far-side.log").read_text()[-3000:])
        return json.loads(line)


class _Upstream:
    """Serves a folder, and breaks now and then.

    Attributes:
        broken_share: of the answers that are cut or 503.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._random = random.Random(0)
        self.broken_share = 0.0

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        path = self._folder / request.path.lstrip("/")
        if not path.is_file():
            return web.Response(status=404)
        if request.method == "GET" and self._random.random() < self.broken_share:
            return await self._break(request, path)
        return web.FileResponse(path)

    async def _break(self, request: web.BaseRequest, path: Path) -> web.StreamResponse:
        if self._random.random() < 0.2:
            return web.Response(status=_UNAVAILABLE)
        if "Range" in request.headers:
            return disconnect(request, reset=True)
        content = await asyncio.to_thread(path.read_bytes)
        response = web.StreamResponse(headers={"Accept-Ranges": "bytes"})
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: self._random.randrange(len(content))])
        return disconnect(request)


def _serve_commands(ghcr: GhcrDouble, upstream: _Upstream) -> None:
    def forget_faults() -> int:
        """Drop the faults that nobody met, and say how many; what stalls goes on stalling."""
        with ghcr.faults._lock:
            left = sum(pending.times or 0 for pending in ghcr.faults._pending)
            ghcr.faults._pending.clear()
        return left

    def break_upstream(share: float) -> None:
        upstream.broken_share = share

    def start() -> None:
        start_again(ghcr)

    def sweep() -> int:
        return len(ghcr.sweep())

    commands = {
        command.__name__: command
        for command in (
            ghcr.fault,
            ghcr.rate_limit,
            ghcr.release,
            ghcr.expire_tokens,
            ghcr.expire_urls,
            ghcr.reset_requests,
            start,
            ghcr.stop,
            ghcr.clear_faults,
            forget_faults,
            break_upstream,
            sweep,
        )
    }
    for line in sys.stdin:
        name, arguments = json.loads(line)
        _say(commands[name](**arguments))


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until the input ends."""
    upstream = _Upstream(Path(sys.argv[1]))
    serving = ServerThread(upstream.serve)
    with GhcrDouble(deletes=True) as ghcr:
        serving.start()
        _say([ghcr.host, f"http://127.0.0.1:{serving.ports[0]}", ghcr.token])
        _serve_commands(ghcr, upstream)
        serving.stop()


if __name__ == "__main__":
    main()
