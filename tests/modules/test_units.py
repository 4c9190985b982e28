"""The units that the modules write: what systemd says of them, and the proxy started as they say."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.proxy.open_files import MOST_FILES
from tests.support.journey import put
from tests.support.nix import NixSandbox
from tests.support.nix_modules import (
    KEY,
    STANDIN,
    TOP,
    UNIT,
    USABLE,
    Evaluated,
    Modules,
    home_unit,
    service_unit,
    socket_unit,
)
from tests.support.nix_objects import read_objects
from tests.support.programs import require_program
from tests.support.registries import REPO, Ghcr

pytestmark = pytest.mark.needs("nix-instantiate")

MOST_SECONDS = 30

# Starts a program as systemd does: the socket at descriptor 3, and the variables that say whose it is.
STARTER = textwrap.dedent("""
    import os, sys

    os.dup2(int(sys.argv[1]), 3)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = "1"
    os.execv(sys.argv[2], sys.argv[2:])
""")

VARIANTS: list[dict[str, Any]] = [
    {"repo": "octocat/my-cache", "publicKey": KEY},
    {"registry": "oci:/srv/100% cache", "publicKey": KEY, "tokenFile": "/run/secrets/t"},
    {
        "repo": "octocat/my-cache",
        "publicKey": KEY,
        "listenAddress": "::",
        "openFirewall": True,
        "upstreams": ["https://a.example/x%20y", "https://b.example"],
        "extraSettings": {"QUOTED": 'a "b" \\\\ c', "HTTPS_PROXY": "http://proxy.example/%40"},
        "upstreamsFile": "/run/secrets/100% upstreams",
    },
    {"repo": "octocat/my-cache", "requireSignatures": False},
]


def write_units(evaluated: Evaluated, folder: Path) -> list[str]:
    units = {"service": service_unit(evaluated.service), "socket": socket_unit(evaluated.socket)}
    return _write(units, folder)


def write_home_units(evaluated: Evaluated, folder: Path) -> list[str]:
    user = evaluated.config["systemd"]["user"]
    units = {kind: home_unit(user[f"{kind}s"][UNIT]) for kind in ("service", "socket")}
    return _write(units, folder)


def _write(units: dict[str, str], folder: Path) -> list[str]:
    folder.mkdir()
    for kind, text in units.items():
        (folder / f"{UNIT}.{kind}").write_text(text)
    return [str(folder / f"{UNIT}.{kind}") for kind in units]


def analyze(*arguments: str, runtime: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require_program("systemd-analyze"), "--no-pager", *arguments],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(runtime)},
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
    )


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("settings", VARIANTS)
def test_systemd_understands_every_line(modules: Modules, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A line that systemd ignores protects nobody, and it says so only in its log."""
    done = analyze("verify", *write_units(modules.evaluate(**settings), tmp_path / "units"), runtime=tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    home = {name: value for name, value in settings.items() if name != "openFirewall"}
    if "publicKey" not in settings:
        home["configureNix"] = False
    units = write_home_units(modules.evaluate("home", **home), tmp_path / "home")
    done = analyze("--user", "verify", *units, runtime=tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("settings", VARIANTS)
def test_exposure_is_below_two(modules: Modules, tmp_path: Path, settings: dict[str, Any]) -> None:
    """What systemd counts as exposure stays below 2 of 10, for every way in which the service is set up."""
    service, _ = write_units(modules.evaluate(**settings), tmp_path / "units")
    # It takes tenths, and fails above.
    done = analyze("security", "--offline=yes", "--threshold=19", service, runtime=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.needs("systemd-analyze", "bwrap")
def test_the_check_runs_in_a_build(modules: Modules, nix: NixSandbox, tmp_path: Path) -> None:
    """`nix flake check` runs systemd-analyze where there is no /run, and where nobody can make one."""
    standin = f'(import {STANDIN}/pkgs.nix {{ lib = import {STANDIN}/lib.nix; system = "x86_64-linux"; }})'
    expression = f"(import {TOP}/nix/checks.nix {{ pkgs = {standin}; }}).units.script"
    found = nix.run("nix-instantiate", "--eval", "--json", "-E", expression).check()
    write_units(modules.evaluate(**USABLE), tmp_path / "units")
    # The stand-in writes no units, and these are as NixOS writes them.
    script, copied = re.subn(
        r"cp \S+ \$out/(\S+)", rf"cp {tmp_path}/units/\1 $out/\1", json.loads(found.stdout)
    )
    assert copied == 2
    sandbox = ["--ro-bind", "/usr", "/usr", "--dev", "/dev", "--proc", "/proc", "--ro-bind", "/etc", "/etc"]
    for folder in ("bin", "lib", "lib64", "sbin"):
        sandbox += ["--symlink", f"usr/{folder}", f"/{folder}"]
    sandbox += ["--tmpfs", "/tmp", "--bind", str(tmp_path), str(tmp_path), "--remount-ro", "/"]

    def run(script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                require_program("bwrap"),
                *("--unshare-user", "--uid", "1000", "--gid", "1000", *sandbox),
                *("/bin/bash", "-euc", script),
            ],
            env={"PATH": os.environ["PATH"], "out": str(tmp_path / "out")},
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            check=False,
        )

    if run(
        "bwrap --dev-bind /usr /usr --symlink usr/lib64 /lib64 --symlink usr/lib /lib /usr/bin/true"
    ).returncode:
        pytest.skip("this system lets nobody make a namespace inside of another")
    done = run(script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level for nixcache-proxy.service: 1." in done.stdout


@pytest.mark.parametrize(("mebibytes", "most"), [(64, "576M"), (256, "768M"), (4096, "4608M")])
def test_memory_is_bounded(modules: Modules, mebibytes: int, most: str) -> None:
    """The bound follows what packs may take, and swapping does not pass it; a user's unit has it, too."""
    settings: dict[str, Any] = {"repo": "octocat/my-cache", "publicKey": KEY, "packMemory": mebibytes}
    home = modules.evaluate("home", **settings).config["systemd"]["user"]["services"][UNIT]
    for service in (modules.evaluate(**settings).service["serviceConfig"], home["Service"]):
        assert (service["MemoryMax"], service["MemorySwapMax"]) == (most, 0)
        assert service["LimitNOFILE"] == MOST_FILES
        assert 0 < service["TasksMax"] <= 128


def test_a_port_that_nix_trusts_is_never_given_up(modules: Modules) -> None:
    """Without signatures, whoever listens next is trusted: no number of failed starts closes the socket."""
    unsigned = modules.evaluate(repo="octocat/my-cache", requireSignatures=False)
    assert unsigned.service["unitConfig"] == {"StartLimitIntervalSec": 0}
    assert unsigned.socket["socketConfig"]["TriggerLimitIntervalSec"] == 0
    assert unsigned.service["serviceConfig"]["Restart"] == "on-failure"
    assert "RestartPreventExitStatus" not in unsigned.service["serviceConfig"]
    signed = modules.evaluate(repo="octocat/my-cache", publicKey=KEY)
    assert signed.service["unitConfig"]["StartLimitBurst"] == 5
    assert "TriggerLimitIntervalSec" not in signed.socket["socketConfig"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@contextmanager
def started(
    evaluated: Evaluated, folder: Path, token: str, upstreams: Sequence[str] = ()
) -> Iterator[socket.socket]:
    """Run the service as its unit says, as systemd would; gives the manager's end of NOTIFY_SOCKET.

    The socket listens before the service starts, and one request waits there already.
    """
    (stream,) = evaluated.socket["listenStreams"]
    host, _, port = stream.rpartition(":")
    credentials, cache = folder / "credentials", folder / "cache"
    credentials.mkdir()
    (credentials / "token").write_text(token)
    (credentials / "upstreams").write_text("".join(f"{url}\n" for url in upstreams))
    environment = {
        name: value.replace("%d", str(credentials)).replace("%%", "%")
        for name, value in evaluated.service["environment"].items()
    }
    with (
        socket.create_server((host, int(port))) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(folder / "notify"))
        manager.settimeout(MOST_SECONDS)
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                STARTER,
                str(listening.fileno()),
                *evaluated.service["serviceConfig"]["ExecStart"].split(),
            ],
            pass_fds=[listening.fileno()],
            env={
                "PATH": os.environ["PATH"],
                "HOME": "/",
                "NOTIFY_SOCKET": manager.getsockname(),
                "CACHE_DIRECTORY": str(cache),
                **environment,
                **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE")},
            },
            stdout=subprocess.DEVNULL,
        )
        try:
            yield manager
            process.send_signal(signal.SIGTERM)
            assert process.wait(MOST_SECONDS) == 0
        finally:
            process.kill()
            process.wait()


def ask(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=MOST_SECONDS) as connection:
        connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            return answer.read()


def nix_conf(evaluated: Evaluated) -> dict[str, str]:
    """What the module tells Nix, less the public caches: they cannot be reached from here."""
    settings = {
        name: " ".join(value) if isinstance(value, list) else json.dumps(value)
        for name, value in evaluated.nix_settings.items()
    }
    return {
        name: " ".join(word for word in value.split() if "cache.nixos.org" not in word)
        for name, value in settings.items()
    }


def module_for(
    modules: Modules, ghcr: Ghcr, folder: Path, settings: Mapping[str, Any]
) -> tuple[int, Evaluated]:
    port = free_port()
    return port, modules.evaluate(
        registry=ghcr.server.host,
        repo=REPO,
        port=port,
        tokenFile=str(folder / "token"),
        priority=17,
        upstreams=[],
        **settings,
    )


@pytest.mark.needs("nix")
def test_the_unit_serves_nix(
    modules: Modules, ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """From the options to a substituted path: socket activation, readiness, secrets, index, nix.conf."""
    paths = nix.build_paths(3)
    put(ghcr, read_objects(nix, paths), [key])
    settings = {"publicKey": str(key.public_key), "upstreamsFile": str(tmp_path / "upstreams")}
    port, evaluated = module_for(modules, ghcr, tmp_path, settings)
    upstream = f"http://user:hunter2@127.0.0.1:{free_port()}"
    with started(evaluated, tmp_path, f"{ghcr.user}:{ghcr.password}", [upstream]) as manager:
        # The socket takes what comes before the service is there.
        assert b"Priority: 17\n" in ask(port, "/nix-cache-info")
        assert manager.recv(100) == b"READY=1"
        conf = nix_conf(evaluated)
        assert conf["substituters"] == f"http://127.0.0.1:{port}"
        run = nix.realise(
            paths,
            substituters=[conf.pop("substituters")],
            trusted_keys=[conf.pop("trusted-public-keys")],
            options=conf,
        ).check()
        assert nix.dump(paths[-1], run.store) == nix.dump(paths[-1])
        assert any((tmp_path / "cache").iterdir())
        status = ask(port, "/_status")
        assert upstream.partition("@")[2].encode() in status
        assert b"hunter2" not in status


@pytest.mark.needs("nix")
def test_unsigned_means_this_cache_only(
    modules: Modules, ghcr: Ghcr, nix: NixSandbox, tmp_path: Path
) -> None:
    """Without signatures Nix takes what the proxy serves, by that substituter's name alone."""
    paths = nix.build_paths(2)
    put(ghcr, read_objects(nix, paths))
    port, evaluated = module_for(modules, ghcr, tmp_path, {"requireSignatures": False})
    conf = nix_conf(evaluated)
    substituter = conf.pop("substituters")
    conf.pop("trusted-public-keys")
    with started(evaluated, tmp_path, f"{ghcr.user}:{ghcr.password}"):
        assert ask(port, "/health").endswith(b"ok\n")
        nix.realise(paths, substituters=[substituter], options=conf).check()
        # The same cache by another name stands for any other cache that is not trusted.
        refused = nix.realise(paths, substituters=[f"http://localhost:{port}"], options=conf)
    assert refused.returncode != 0
    assert "not signed by any of the keys" in refused.stderr
