"""The post-build hook, run by a real shell: whatever is wrong, it ends with 0."""

import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nixcache_oci.queue.hook import render_hook
from nixcache_oci.queue.spool import Event, Spool
from tests.publisher.made_store import made_path

ONE, OTHER = made_path("one"), made_path("other")
ODD = made_path("a.b+c_d?e=f")


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    folder = tmp_path / "with space's"
    Spool.of(folder).make()
    return folder


@pytest.fixture(params=[["dash"], ["bash", "--posix"]], ids=lambda shell: shell[0])
def run(request: pytest.FixtureRequest, queue: Path) -> Callable[..., None]:
    """Runs the hook as Nix does; its status must be 0, and it must print nothing."""
    if shutil.which(request.param[0]) is None:
        pytest.skip(f"not installed: {request.param[0]}")
    script = queue / "hook"

    def run(limit: Callable[[], None] | None = None, **environment: str) -> None:
        script.write_text(render_hook(queue))
        ran = subprocess.run(
            [shutil.which(request.param[0]) or "", *request.param[1:], str(script)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            timeout=60,
            check=False,
            preexec_fn=limit,
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")

    return run


def read(queue: Path) -> list[Event]:
    return list(Spool.of(queue).read())


def test_it_queues_what_was_built(queue: Path, run: Callable[..., None]) -> None:
    """All outputs are one event; a `?` of a name is no pattern; nothing unfinished is left."""
    run(OUT_PATHS=f"{ONE} {ODD}", DRV_PATH=str(OTHER), PATH="/bin:/usr/bin")
    (event,) = read(queue)
    assert (event.paths, event.derivations, event.problems) == ((ONE, ODD), (), ())
    assert [path.name for path in (queue / "events").iterdir()] == [event.name]


def test_nix_2_8_names_the_derivation_only(queue: Path, run: Callable[..., None]) -> None:
    """It sets OUT_PATHS to nothing; without both, there is nothing to queue; no PATH is needed."""
    run(OUT_PATHS="", DRV_PATH=str(OTHER))
    (event,) = read(queue)
    assert (event.paths, event.derivations) == ((), (OTHER,))
    run()
    assert [path for event in read(queue) for path in event.paths] == []


def test_a_derivation_has_one_event(queue: Path, run: Callable[..., None]) -> None:
    """What is built again says the same; what another derivation made is another event."""
    for derivation in (OTHER, OTHER, ODD):
        run(OUT_PATHS=str(ONE), DRV_PATH=str(derivation))
    assert {event.name for event in read(queue)} == {OTHER.hash_part, ODD.hash_part}


def test_without_a_folder_the_build_goes_on(queue: Path, run: Callable[..., None]) -> None:
    """The queue may have been removed, or never started; or a file may be in its place."""
    shutil.rmtree(queue / "events")
    run(OUT_PATHS=str(ONE))
    (queue / "events").write_text("")
    run(OUT_PATHS=str(ONE))
    assert (queue / "events").read_text() == ""


def test_on_a_full_disk_the_build_goes_on(queue: Path, run: Callable[..., None]) -> None:
    """Half an event is no event, and is not left behind."""

    def limit() -> None:
        # As a full disk, for this process: a write fails after the file was created.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    run(limit, OUT_PATHS=str(ONE))
    assert list((queue / "events").iterdir()) == []


def test_no_link_is_written_through(queue: Path, tmp_path: Path) -> None:
    """The daemon runs it as root, and the folder may be another user's."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    script = render_hook(queue).replace("-$$", "-fixed")
    (queue / f"events/.nixcache-unfinished-{OTHER.hash_part}-fixed").symlink_to(precious)
    environment = {"OUT_PATHS": str(ONE), "DRV_PATH": str(OTHER)}
    subprocess.run(["/bin/sh", "-c", script], env=environment, check=True)
    assert (precious.read_text(), read(queue)) == ("kept", [])
