"""The program with standard streams that are closed, or that nothing can be written to."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest

from tests.cli.cache_story import write_empty_cache

_DEADLINE_SECONDS = 30


def _environment(tmp_path: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NIXCACHE_")}
    return {
        **kept,
        "NIXCACHE_REGISTRY": f"oci:{tmp_path / 'cache'}",
        "NIXCACHE_UPSTREAM": "",
        "NIXCACHE_INDEX_DIR": str(tmp_path / "index"),
        **more,
    }


def _run(tmp_path: Path, redirections: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "nixcache_oci", *arguments],
        env=_environment(tmp_path, **more),
        capture_output=True,
        check=False,
        text=True,
        timeout=_DEADLINE_SECONDS,
    )


def _free_port() -> int:
    with socket.socket() as once:
        once.bind(("127.0.0.1", 0))
        port: int = once.getsockname()[1]
        return port


def _wait_until_healthy(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
                assert answer.read().strip() == b"ok"
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the proxy does not answer: {process.poll()}")


@pytest.mark.parametrize(
    "redirections",
    ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>&1"],
)
def test_the_proxy_serves_whatever_its_streams_are(tmp_path: Path, redirections: str) -> None:
    """Supervisors close what they do not want: the proxy answers, and ends in order when it is told to."""
    port = _free_port()
    command = [sys.executable, "-m", "nixcache_oci", "proxy", "--port", str(port)]
    with subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *command],
        env=_environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            _wait_until_healthy(port, process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(_DEADLINE_SECONDS) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
@pytest.mark.parametrize("arguments", [("--version",), ("list", "--help"), ("list", "--json")])
def test_output_that_is_lost_is_one_line_and_a_failure(
    tmp_path: Path, redirection: str, reason: str, arguments: tuple[str, ...]
) -> None:
    """A script must not take half a list for all of it."""
    write_empty_cache(tmp_path / "cache")
    done = _run(tmp_path, redirection, *arguments)
    expected = f"nixcache-oci: error: standard output: {reason}; part of the output is lost\n"
    assert done.returncode == 1
    assert done.stderr.endswith(expected)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_a_message_that_is_lost_changes_no_status(tmp_path: Path, redirection: str) -> None:
    """0 done, 1 failed, 2 wrong usage, whoever reads about it."""
    write_empty_cache(tmp_path / "cache")
    assert _run(tmp_path, redirection, "list", "--json").returncode == 0
    assert _run(tmp_path, redirection, "frobnicate").returncode == 2
    assert _run(tmp_path, redirection, "list", NIXCACHE_REGISTRY="a b").returncode == 2


def test_no_message_lands_in_a_file_that_took_the_number(tmp_path: Path) -> None:
    """A file that is opened would get the number of a stream that is closed, and then its text."""
    script = textwrap.dedent(f"""
        import os, sys
        from nixcache_oci.cli.standard_streams import StandardStreams

        StandardStreams()
        file = os.open({str(tmp_path / "file")!r}, os.O_CREAT | os.O_WRONLY)
        print("x", file=sys.stderr, flush=True)
        sys.exit(file <= 2)
    """)
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", script], check=False)
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == ""


def test_a_letter_that_a_terminal_does_not_know_is_no_end() -> None:
    """Locales without Unicode are rare, and no reason for a traceback."""
    script = (
        "from nixcache_oci.cli.standard_streams import StandardStreams; StandardStreams(); print('\\u2717')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\u2717\n", "")


def test_standard_input_that_is_closed_is_empty(tmp_path: Path) -> None:
    """A command that reads it finds nothing there, and no error of Python's."""
    done = _run(tmp_path, "<&-", "push", "--stdin")
    assert "Traceback" not in done.stderr
