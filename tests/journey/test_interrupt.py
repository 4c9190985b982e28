"""What every verb shows that a real registry keeps waiting, and how a signal ends it."""

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.oci.reference import RegistryReference
from tests.support.docker_registry import DockerRegistry
from tests.support.objects import store_object
from tests.support.publish import publish
from tests.support.registries import REPO
from tests.support.slow_line import HeldLine

pytestmark = pytest.mark.needs("docker-registry")

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
NOTHING = "nothing was changed; run the same command again"
TABLE, NAR = rb"GET .*/blobs/%(table)s ", rb"GET .*/blobs/%(nar)s "
UPLOAD, WRITE = rb"POST .*/blobs/uploads", rb"PUT .*/manifests/"
NOISE = re.compile("Traceback|Unclosed|never|exception|Error")
OBJECTS = [store_object(name) for name in ("one", "two", "three")]

# Makes the terminal that it has for standard input its own, as a shell does, and becomes the program.
_ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "nixcache_oci", *sys.argv[1:]])
"""

# The program, whose lines come sooner than every five seconds.
_LINES_SOON = """
import sys
import nixcache_oci.cli.progress as progress
from nixcache_oci.__main__ import main
progress.LINE_SECONDS = 0.5
sys.exit(main())
"""


@dataclass(frozen=True)
class Case:
    """One verb, held up.

    Attributes:
        arguments: ``{folder}`` is one for the test, ``{here}`` the repository, ``{path}`` a store path.
        held: the requests that never arrive.
        shows: what there is to see of its progress meanwhile.
        holds: what the user is told.
    """

    arguments: str
    held: bytes
    shows: str
    holds: str


CASES = [
    Case("list", TABLE, "reading the cache: 0 of 1 table", NOTHING),
    Case("gc --dry-run", TABLE, "reading the cache: 0 of 1 segment", NOTHING),
    Case("export {folder}/out", NAR, "exporting: 2 of 3 paths", "what is in {folder}/out is complete; run "),
    Case("mirror {here} oci:{folder}/layout", NAR, "mirroring segment 1 of 1: ", "what was copied is kept; "),
    Case("verify", NAR, "checking: 2 of 3 blobs", NOTHING),
    Case("verify --content", NAR, "checking: 2 of 3 blobs", NOTHING),
    Case("verify --repair", NAR, "checking: 2 of 3 blobs", "repairs made so far are kept; "),
    Case(
        "import {folder}/source --allow-unsigned", UPLOAD, "pushing: 3 of 3 paths", "what was sent is kept, "
    ),
    Case("gc --force --min-age-hours 0", WRITE, "", "nothing that is needed was deleted; "),
    Case("pin create name {path}", WRITE, "", "the change was made completely or not at all: "),
]


class Scene:
    """A cache of three paths in a registry, and the program, to which some requests are lost."""

    def __init__(self, registry: DockerRegistry, folder: Path) -> None:
        self.registry = registry
        self.folder = folder
        reference = RegistryReference.of(registry.host, REPO, "nix-cache")

        async def fill() -> dict[bytes, bytes]:
            client = Registry(reference, None, push=True, patience=20)
            try:
                segment = await publish(client, OBJECTS, in_packs=False)
            finally:
                await client.close()
            narinfo, _ = OBJECTS[0].compressed()
            assert narinfo.file_hash is not None
            nar = f"sha256:{narinfo.file_hash.digest.hex()}"
            return {b"table": str(segment.table).encode(), b"nar": nar.encode()}

        self.names = asyncio.run(fill())

    def environment(self, host: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("NIXCACHE")}
        return {
            **kept,
            "NIXCACHE_REGISTRY": host,
            "NIXCACHE_REPO": REPO,
            "NIXCACHE_UPSTREAM": "",
            "NIXCACHE_INDEX_DIR": str(self.folder / "index"),
            "TMPDIR": str(self.folder),
            "TERM": "xterm",
            "COLUMNS": "200",
        }

    def prepare(self, case: Case, host: str) -> tuple[list[str], dict[str, str]]:
        environment = self.environment(host)
        if "source" in case.arguments:
            plain = self.environment(self.registry.host)
            export = [sys.executable, "-m", "nixcache_oci", "export", str(self.folder / "source")]
            subprocess.run(export, env=plain, check=True, capture_output=True, timeout=60)
            environment["NIXCACHE_REPO"] = "octocat/other"
        words = self.fill_in(case.arguments, host).split()
        return words, environment

    def fill_in(self, text: str, host: str = "") -> str:
        here = f"{host}/{REPO}/nix-cache"
        return text.format(folder=self.folder, here=here, path=OBJECTS[0].narinfo.store_path)


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry(auth=False) as running:
        yield running


@pytest.fixture
def scene(registry: DockerRegistry, tmp_path: Path) -> Scene:
    return Scene(registry, tmp_path)


def read_until(descriptor: int, is_enough: Callable[[str], bool]) -> str:
    """Read what a program writes until there is enough of it, or no more."""
    seen = b""
    while not is_enough(seen.decode(errors="replace")):
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # nobody has the terminal open any more
            piece = b""
        if not piece:
            break
        seen += piece
    return seen.decode(errors="replace")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.arguments.partition(" {")[0])
def test_sigterm_in_a_log(scene: Scene, case: Case) -> None:
    """A line says how far it is, however long nothing comes; the last one what holds, and how to go on."""
    with HeldLine(scene.registry.host, case.held % scene.names) as line:
        words, environment = scene.prepare(case, line.host)
        with subprocess.Popen(
            [sys.executable, "-c", _LINES_SOON, *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            assert line.held.wait(30), "it asks"
            seen = read_until(process.stderr.fileno(), lambda text: case.shows in text)
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=30)
    said = (seen + rest).splitlines()
    assert process.returncode == 143, said
    assert any(one.startswith(case.shows) for one in said), said
    assert said[-1].startswith(f"nixcache-oci: interrupted: {scene.fill_in(case.holds)}"), said
    assert not NOISE.search(seen + rest), said
    assert "\x1b" not in seen + rest
    assert list(scene.folder.glob("nixcache-oci-*")) == []


# With a bar, and without one.
@pytest.mark.parametrize("case", CASES[2::3], ids=lambda case: case.arguments.partition(" {")[0])
def test_ctrl_c_on_a_terminal(scene: Scene, case: Case) -> None:
    """A bar shows how far it is; Ctrl-C takes it away and gives the cursor back, then says the same."""
    reader, writer = pty.openpty()
    try:
        with HeldLine(scene.registry.host, case.held % scene.names) as line:
            words, environment = scene.prepare(case, line.host)
            with subprocess.Popen(
                [sys.executable, "-c", _ON_TERMINAL, *words],
                env=environment,
                stdin=writer,
                stdout=writer,
                stderr=writer,
                start_new_session=True,
            ) as process:
                os.close(writer)
                assert line.held.wait(30), "it asks"
                shows = case.shows.partition(": ")[2]
                seen = read_until(reader, lambda text: shows in text and (not shows or HIDE_CURSOR in text))
                os.write(reader, b"\x03")
                seen += read_until(reader, lambda _: False)
                assert process.wait(30) == 130, seen
    finally:
        os.close(reader)
    assert f"nixcache-oci: interrupted: {scene.fill_in(case.holds)}" in seen
    assert not NOISE.search(seen), seen
    assert seen.rfind(SHOW_CURSOR) >= seen.rfind(HIDE_CURSOR)
    assert list(scene.folder.glob("nixcache-oci-*")) == []
