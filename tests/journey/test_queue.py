"""The queue with real Nix: a hook that costs builds nothing, batches, and what becomes of them."""

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.queue.runner import MAX_TOLD
from tests.cli.cache_story import write_layout
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine

pytestmark = pytest.mark.needs("nix")

MOST_SECONDS = 120.0


class Queue:
    """A machine whose Nix has the hook, and whose queue publishes into an OCI layout."""

    def __init__(self, folder: Path, nix: NixSandbox, key: SecretKey) -> None:
        self.folder = folder / "queue"
        self.cache = folder / "cache"
        self.nix = nix
        settings = {
            "NIXCACHE_REGISTRY": f"oci:{self.cache}",
            "NIXCACHE_QUEUE_DIR": str(self.folder),
            "NIX_SIGNING_KEY": key.render(),
        }
        self.machine = Machine(folder / "machine", nix, settings)
        line = self.machine.run("hook", "install").check().stdout
        self.hook = line.removeprefix("post-build-hook = ").strip()
        self._running: list[subprocess.Popen[str]] = []

    def build(self, name: str, *, inputs: str = "") -> str:
        """Build one small derivation, which runs the hook."""
        text = f"""derivation {{
          name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh";
          args = [ "-c" "echo {name} {inputs} > $out" ];
        }}"""
        options = {"post-build-hook": self.hook}
        return self.nix.build_expression(text, options=options).check().stdout.strip()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `queue run`, and wait until it runs."""
        process = self.machine.start("queue", "run", *arguments)
        self._running.append(process)
        assert process.stdout is not None
        assert "publishing what is queued" in process.stdout.readline()
        return process

    def stop(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=MOST_SECONDS)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.machine.run("queue", "status", "--json").check().stdout)
        return found

    def wait(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for what `queue status` tells."""
        deadline = time.monotonic() + MOST_SECONDS
        while not is_so(status := self.status()):
            assert time.monotonic() < deadline, status
        return status

    def segments(self) -> int:
        """How many segments the cache has."""
        found: list[int] = []

        async def count(repository: Repository) -> None:
            found.append(len((await read_listing(repository)).segments))

        if self.cache.exists():
            write_layout(self.cache, count)
        return sum(found)

    def listed(self) -> set[str]:
        return {one["path"] for one in self._list("paths")} if self.cache.exists() else set()

    def roots(self) -> dict[str, list[str]]:
        return {one["name"]: one["paths"] for one in self._list("roots", "--roots")}

    def scopes(self, name: str) -> list[str]:
        """The scopes that keep roots of this name, with any version."""
        found = self._list("roots", "--roots")
        return sorted(one["scope"] for one in found if one["name"].partition("-")[0] == name)

    def links(self) -> list[Path]:
        return list((self.folder / "roots").rglob("*")) if (self.folder / "roots").exists() else []

    def _list(self, key: str, *arguments: str) -> list[dict[str, Any]]:
        found = json.loads(self.machine.run("list", "--json", *arguments).check().stdout)
        entries: list[dict[str, Any]] = found[key]
        return entries


@pytest.fixture
def queue(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> Iterator[Queue]:
    made = Queue(tmp_path, nix, key)
    yield made
    made.stop()


def test_five_builds_in_a_row_make_one_segment(queue: Queue) -> None:
    """What is built while the batch waits for quiet is in it; each is a root, named without its version."""
    queue.start("--wait", "8")
    paths = {queue.build(f"part{letter}-1.{number}") for number, letter in enumerate("abcde")}
    queue.wait(lambda status: status["events"] == 0 and status["published"])
    assert (queue.listed(), queue.segments()) == (paths, 1)
    assert queue.roots().keys() == {f"part{letter}" for letter in "abcde"}
    assert queue.links() == []


def test_a_batch_with_nothing_new_writes_no_segment(queue: Queue) -> None:
    """Paths that are listed and recorded already may be queued any number of times; gone ones are named."""
    path = queue.build("hello-1.0")
    assert queue.machine.run("queue", "drain").check().stderr.count("1 to push") == 1
    queue.machine.run("queue", "add", path).check()
    ran = queue.machine.run("queue", "drain").check()
    assert "1 cached, 0 to push" in ran.stderr
    (queue.folder / "events/1-1-0").write_text(f"{path[:-1]}x\n")
    assert "hello-1.x: dropped: " in queue.machine.run("queue", "drain").check().stderr
    assert (queue.status()["events"], queue.segments()) == (0, 1)
    assert queue.roots() == {"hello": [path]}


def test_events_of_anybody_stop_nothing(queue: Queue) -> None:
    """What names nothing here is dropped, in few lines, and what stands beside it is published."""
    path = queue.build("good-1.0")
    name = "1b9p07z77phvv2hf6gm9f28syp39f1ag"
    lines = [f"{place}/{name}-x{end}" for place in ("/other/store", "/nix/store") for end in ("", ".drv")]
    lines += [f"outputs-of {line}" for line in lines]
    for number, content in enumerate([*lines, *["\0"] * (2 * MAX_TOLD), "outputs-of " * 10_000]):
        (queue.folder / f"events/1-{number}-0").write_text(f"{content}\n")
    ran = queue.machine.run("queue", "drain").check()
    assert queue.listed() == {path}
    assert queue.status()["events"] == 0
    assert ran.stderr.count("dropped") <= 2 * (MAX_TOLD + 1)
    assert max(map(len, ran.stderr.splitlines())) < 1000


def test_no_event_builds(queue: Queue) -> None:
    """What is named before it is built is not built by naming it: a derivation, its output, its outputs."""
    text = 'derivation { name = "unbuilt"; system = builtins.currentSystem; builder = "/bin/sh"; }'
    derivation = queue.nix.run("nix-instantiate", "-E", text).check().stdout.strip()
    output = queue.nix.run("nix-store", "--query", "--outputs", derivation).check().stdout.strip()
    for number, line in enumerate((derivation, output, f"outputs-of {derivation}")):
        (queue.folder / f"events/1-{number}-0").write_text(f"{line}\n")
    ran = queue.machine.run("queue", "drain").check()
    assert f"{output}: dropped: " in ran.stderr
    assert queue.listed() == {derivation}
    assert not queue.nix.physical(output).exists()


def test_the_next_version_supersedes_the_last(queue: Queue) -> None:
    """Of one name, the newest counts; what another of the batch refers to needs no root."""
    for version in ("1.0", "1.1"):
        path = queue.build(f"hello-{version}")
        user = queue.build(f"user-{version}", inputs=f'${{builtins.storePath "{path}"}}')
        queue.machine.run("queue", "drain", "--scope", "mine").check()
        assert queue.roots() == {"user": [user]}
        assert path in queue.listed()


def test_a_dead_queue_loses_nothing(queue: Queue) -> None:
    """Builds succeed while nobody publishes; what they queued is published when the queue is back."""
    process = queue.start("--wait", "60")
    first = queue.build("first-1")
    queue.wait(lambda status: status["paths"] == 1)
    process.kill()
    process.wait()
    second = queue.build("second-1")
    status = queue.status()
    assert (status["isRunning"], status["paths"] + status["events"]) == (False, 4)
    queue.start("--wait", "60")
    queue.machine.run("queue", "drain").check()
    assert (queue.listed(), queue.segments(), queue.links()) == ({first, second}, 1, [])


def test_a_hook_without_its_folder_fails_no_build(queue: Queue) -> None:
    """The script itself has to stay: it is Nix that runs it."""
    shutil.rmtree(queue.folder / "events")
    assert queue.build("lonely-1")
    assert queue.status()["events"] == 0


def test_two_queues_do_not_publish_twice(queue: Queue) -> None:
    """The second is refused, with the folder's name; and its end is the first one's business."""
    queue.start()
    ran = queue.machine.run("queue", "run")
    assert (ran.status, str(queue.folder) in ran.stderr) == (1, True)


def test_a_failed_batch_stays_and_says_why(queue: Queue) -> None:
    """It is tried again; draining gives up after its time, with what is left."""
    path = queue.build("stays-1")
    (queue.cache).write_text("no folder")
    ran = queue.machine.run("queue", "drain", "--timeout", "3")
    assert (ran.status, "queued: 1 path of 1 event" in ran.stderr) == (1, True)
    status = queue.status()
    assert status["failures"] >= 1
    assert status["failure"] in ran.stderr
    queue.cache.unlink()
    queue.machine.run("queue", "drain").check()
    assert queue.listed() == {path}
    assert (queue.status()["failures"], queue.status()["failure"]) == (0, None)


def test_queued_paths_survive_the_garbage_collector(queue: Queue) -> None:
    """Until they are published, and not a moment longer."""
    queue.start("--wait", "3600")
    path = queue.build("kept-1")
    deadline = time.monotonic() + MOST_SECONDS
    while not queue.links():
        assert time.monotonic() < deadline
    queue.nix.run("nix-store", "--gc").check()
    assert queue.nix.physical(path).exists()
    queue.machine.run("queue", "drain").check()
    queue.nix.run("nix-store", "--gc").check()
    assert not queue.nix.physical(path).exists()
    assert queue.listed() == {path}


def test_watching_publishes_exactly_what_became_valid(queue: Queue, tmp_path: Path) -> None:
    """Built, substituted, added, also while nobody watched; not what failed, is gone or is an upstream's."""
    nix = queue.nix
    secret, public = nix.generate_key("upstream-1")
    first, second = nix.build_paths(2, seed="elsewhere")
    nix.sign([second], secret)
    nix.copy_to(f"file://{tmp_path}/substituter", [first, second]).check()
    nix.run("nix-store", "--gc").check()
    before = build(nix, "before-1")
    watching = ("--watch", "--upstream-key-name", "upstream-1")
    process = queue.start(*watching, "--wait", "1")
    built = {build(nix, "built-1")}
    (tmp_path / "added").write_text("added")
    added = nix.add_path(tmp_path / "added")
    assert nix.build_expression(
        'derivation { name = "failed"; system = builtins.currentSystem; builder = "/bin/false"; }'
    ).returncode
    queue.wait(lambda status: status["events"] == 0 and queue.listed() == built | {added})
    process.kill()
    process.wait()
    gone = build(nix, "gone-1")
    nix.run("nix-store", "--delete", gone).check()
    built.add(build(nix, "late-1"))
    options = [f"file://{tmp_path}/substituter"]
    nix.realise(
        [first, second], substituters=options, trusted_keys=[public], store=nix.root, require_sigs=False
    )
    queue.start(*watching, "--wait", "1")
    queue.machine.run("queue", "drain").check()
    assert before not in queue.listed()
    assert queue.listed() == built | {added, first}


def test_what_a_job_used_is_recorded(queue: Queue) -> None:
    """What came from the cache is a root; nothing is sent that nobody queued; the drain writes it once."""
    nix = queue.nix
    before, used = build(nix, "before-1"), build(nix, "used-1")
    queue.machine.run("push", before, used).check()
    nix.run("nix-store", "--delete", used).check()
    queue.start("--keep-used", "--scope", "job", "--wait", "3600")
    queue.machine.run("queue", "drain").check()
    assert (queue.segments(), queue.scopes("used")) == (1, ["push/used-1"])
    assert build(nix, "used-1") == used
    build(nix, "unrelated-1")
    built = queue.build("built-1")
    for _ in range(2):
        queue.machine.run("queue", "drain").check()
        assert queue.listed() == {before, used, built}
        assert queue.segments() == 2
    assert queue.scopes("used") == ["job", "push/used-1"]
    assert queue.scopes("before") == ["push/before-1"]


def test_what_was_used_is_worth_no_failure(queue: Queue) -> None:
    """Where it cannot be found out, a warning says so, and what was built is published."""
    (queue.folder / "used").mkdir()
    process = queue.start("--keep-used")
    built = queue.build("built-1")
    queue.machine.run("queue", "drain").check()
    assert queue.listed() == {built}
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=MOST_SECONDS)
    assert said.count("warning: what is used of the cache will not be recorded: ") == 1
    assert said.count("warning: what was used of the cache is not recorded: ") == 1


def test_watch_exec_publishes_what_a_command_builds(queue: Queue) -> None:
    """The command has our streams, and its status is ours; it finds no key, and the folder is gone after."""
    script = """
        nix-build --no-out-link -E 'derivation {
          name = "made-1"; system = builtins.currentSystem; builder = "/bin/sh";
          args = [ "-c" "echo made > $out" ];
        }'
        read line; echo "$line ${NIX_SIGNING_KEY:-no key} $NIXCACHE_QUEUE_DIR"; exit 7
    """
    before = build(queue.nix, "before-1")
    ran = queue.machine.run("watch-exec", "--", "sh", "-c", script, input_text="a line\n")
    assert ran.status == 7, ran.stderr
    path, said = ran.stdout.splitlines()
    assert said == f"a line no key {queue.folder}"
    assert (queue.listed(), queue.segments()) == ({path}, 1)
    assert before not in queue.listed()
    assert list(queue.machine.folder.glob("nixcache-queue-*")) == []


def test_watch_exec_passes_a_signal_on(queue: Queue) -> None:
    """The command is not left behind, nor waited for for ever; a command that is not there is wrong usage."""
    process = queue.machine.start("watch-exec", "--", "sh", "-c", "echo started; exec sleep 1000")
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=MOST_SECONDS)
    assert process.returncode == 128 + signal.SIGTERM
    assert queue.machine.run("watch-exec", "--", "no-such-program").status == 2


def build(nix: NixSandbox, name: str) -> str:
    """Build one small derivation, without a hook."""
    text = f"""derivation {{
      name = "{name}"; system = builtins.currentSystem; builder = "/bin/sh";
      args = [ "-c" "echo {name} > $out" ];
    }}"""
    return nix.build_expression(text).check().stdout.strip()
