"""The demo: what it prints works as printed, and nothing stays behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.cli.demo import make_sample
from nixcache_oci.nix.narinfo import NarInfo
from tests.support.nix import NixSandbox
from tests.support.programs import require_program


@pytest.fixture(params=[""])
def demo(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A running demo, and all that it printed; the parameter is its PATH, where that is not ours."""
    (tmp_path / "tmp").mkdir()
    coverage = {key: value for key, value in os.environ.items() if key.startswith("COVERAGE")}
    with subprocess.Popen(
        [sys.executable, "-m", "nixcache_oci", "demo"],
        env={
            "PATH": request.param or os.environ["PATH"],
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path / "tmp"),
            **coverage,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "the demo ended early"
        try:
            yield process, "".join(lines)
        finally:
            process.kill()


def shell(command: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Run a line as a user would paste it."""
    settings = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    return subprocess.run(
        ["/bin/sh", "-c", command], env=settings, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.needs("curl")
@pytest.mark.parametrize(("demo", "has_curl"), [("", True), ("/nowhere", False)], indirect=["demo"])
def test_the_printed_line_fetches_the_narinfo(
    demo: tuple["subprocess.Popen[str]", str], tmp_path: Path, *, has_curl: bool
) -> None:
    """The sample's narinfo is there at once, signed with the key that is printed."""
    _, text = demo
    command = re.search(r"(curl|python3 -c '.*') \S+\.narinfo", text)
    key = re.search(r"--option trusted-public-keys (\S+)", text)
    assert command is not None
    assert (command[1] == "curl") is has_curl
    assert key is not None
    narinfo = NarInfo.parse(shell(command[0], tmp_path).stdout)
    assert narinfo.store_path == make_sample("/nix/store")[0].store_path
    assert [sig.key_name for sig in narinfo.sigs] == [key[1].partition(":")[0]]


@pytest.mark.needs("nix-store")
def test_the_printed_nix_line_works(demo: tuple["subprocess.Popen[str]", str], tmp_path: Path) -> None:
    """A real Nix takes the sample into a store of its own."""
    _, text = demo
    command = re.search(r"nix-store --store(?:.*\\\n)+.*", text)
    assert command is not None
    run = shell(command[0], tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(make_sample("/nix/store")[0].store_path)


def test_nothing_of_it_is_for_nix_conf(demo: tuple["subprocess.Popen[str]", str]) -> None:
    """Its port is anybody's when it ends, and its key nobody's: no line asks to set them for a machine."""
    _, text = demo
    assert "nix.conf" not in text
    assert "extra-" not in text


def test_ctrl_c_ends_it_cleanly(demo: tuple["subprocess.Popen[str]", str], tmp_path: Path) -> None:
    """No traceback, exit status 0, and the folder is gone."""
    process, _ = demo
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "over" in rest
    assert errors == ""
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.needs("nix")
def test_the_sample_is_what_nix_makes_of_the_same_files(tmp_path: Path) -> None:
    """Path, hash and NAR agree with ``nix store add-path`` and ``nix-store --dump``."""
    files = tmp_path / "nixcache-oci-sample"
    (files / "bin").mkdir(parents=True)
    readme = (
        "This store object was computed, packed and signed by nixcache-oci itself.\n"
        "It came to you out of an OCI repository.\n"
    )
    (files / "README").write_text(readme)
    (files / "bin/hello").write_text('#!/bin/sh\necho "Hello from an OCI repository."\n')
    (files / "bin/hello").chmod(0o755)
    (files / "hello").symlink_to("bin/hello")
    narinfo, nar = make_sample("/nix/store")
    nix = NixSandbox(tmp_path / "nix")
    added = nix.run("nix", "store", "add-path", str(files)).check().stdout.strip()
    assert added == str(narinfo.store_path)
    dumped = subprocess.run(
        [require_program("nix-store"), "--dump", str(files)],
        env=nix.environment(),
        capture_output=True,
        check=True,
    ).stdout
    assert dumped == nar
    [info] = nix.path_info([added]).values()
    assert info["ca"] == narinfo.ca
