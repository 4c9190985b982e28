import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path


def test_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """From settings to an answer and back: the address is printed, systemd is told, the exit is clean."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        with subprocess.Popen(
            [sys.executable, "-m", "nixcache_oci", "proxy", "--port=0", "--upstream=", "--priority=7"],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "NIXCACHE_REGISTRY": f"oci:{tmp_path}/cache",
                "NOTIFY_SOCKET": manager.getsockname(),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert manager.recv(100) == b"READY=1"
                assert process.stdout is not None
                address = process.stdout.readline().removeprefix("listening on ").strip()
                with urllib.request.urlopen(f"{address}/nix-cache-info", timeout=20) as answer:
                    assert b"Priority: 7\n" in answer.read()
                process.send_signal(signal.SIGTERM)
                assert manager.recv(100) == b"STOPPING=1"
                _, errors = process.communicate(timeout=20)
            finally:
                process.kill()
    assert process.returncode == 0
    assert "level=info event=stopping" in errors
    assert "traceback" not in errors.lower()
