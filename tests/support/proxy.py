"""The real proxy as a process of its own, and the few questions that tests ask it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, Self

import psutil

_MOST_SECONDS = 150.0  # four million entries take ten on a machine that is idle


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got."""

    status: int
    headers: Message
    body: bytes


class ProxyProcess:
    """Runs ``nixcache-oci proxy`` on a free port, without upstreams unless told.

    Args:
        folder: for its home and log; a second process on the same folder finds the first one's index.
        command: that starts it.
        settings: further environment variables.

    Attributes:
        most_files: how many files it may have open; set before it starts, None for what this process may.
    """

    most_files: int | None = None

    def __init__(self, folder: Path, *, command: Sequence[str] = (), **settings: str) -> None:
        self._folder = folder
        self._command = list(command)
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "NIXCACHE_INDEX_DIR": str(folder / "index"),
            "NIXCACHE_PORT": "0",
            "NIXCACHE_UPSTREAM": "",
            **settings,
        }
        # What measures the coverage of this process measures that one's, too.
        self._environment |= {key: value for key, value in os.environ.items() if key.startswith("COVERAGE")}
        self.url = ""

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._log = (self._folder / "proxy.log").open("ab")
        limit = f'ulimit -n {self.most_files} && exec "$@"'
        prefix = ["sh", "-c", limit, "sh"] if self.most_files is not None else []
        self.process = subprocess.Popen(
            [*prefix, *(self._command or (sys.executable, *self._program(), "proxy"))],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().removeprefix("listening on ").strip()
        if not self.url:
            self.stop()
            raise RuntimeError(f"the proxy did not start: {self.log[-2000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _program(self) -> list[str]:
        return ["-m", "nixcache_oci"]

    @property
    def log(self) -> str:
        return (self._folder / "proxy.log").read_text()

    @property
    def folder(self) -> Path:
        """Of its home, its log, and its index in the folder ``index``."""
        return self._folder

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def stop(self) -> int:
        """End it as systemd does; gives the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_MOST_SECONDS)
        finally:
            self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self._log.close()

    def ask(self, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Answer:
        """Send one request; a body that was cut raises http.client.IncompleteRead."""
        request = urllib.request.Request(f"{self.url}{path}", method=method, headers=dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=_MOST_SECONDS) as response:
                return Answer(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def status(self) -> dict[str, Any]:
        """What ``/_status`` shows."""
        status: dict[str, Any] = json.loads(self.ask("/_status").body)
        return status

    def wait_until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the status satisfies a condition."""
        end = time.monotonic() + _MOST_SECONDS
        while not is_so(status := self.status()):
            if time.monotonic() > end:
                raise TimeoutError(f"status is {status}")
            time.sleep(0.02)
        return status

    def wait_ready(self) -> dict[str, Any]:
        """Wait for the first index."""
        return self.wait_until(lambda status: bool(status["index"]["ready"]))

    def refresh(self) -> dict[str, Any]:
        """Look at the repository now."""
        answer: dict[str, Any] = json.loads(self.ask("/_refresh", method="POST").body)
        return answer

    def rss_bytes(self) -> int:
        """Resident memory, all of it."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def peak_bytes(self) -> int:
        """The most resident memory that it ever had (VmHWM)."""
        return self._memory("VmHWM")

    def anonymous_bytes(self) -> int:
        """Resident memory that no file backs (RssAnon)."""
        return self._memory("RssAnon")

    def _memory(self, field: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"the kernel does not tell {field}")


class WatchedProxy(ProxyProcess):
    """One whose event loop is watched: see ``tests.support.loop_watch``."""

    def _program(self) -> list[str]:
        return ["-m", "tests.support.loop_watch", str(self._block_report)]

    @property
    def _block_report(self) -> Path:
        return self._folder / "worst-block"

    def worst_block_seconds(self) -> float:
        """How long the loop was blocked at the worst so far, in CPU time."""
        return float(self._block_report.read_text())
