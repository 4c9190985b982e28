"""Publishing a closure to a local docker-registry, beside what a user would do instead, in one run.

.venv/bin/python -m bench.publish --small 1000 --mebibytes 1024

Small paths: against one ``nix-store --dump | xz -1`` and upload for each. One large path: against
``nix copy --to 'file://…?compression=zstd'``. Prints ratios, memory and requests.
"""

import argparse
import json
import re
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec

import psutil

from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.oci.digest import Digest
from tests.support.docker_registry import DockerRegistry
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine

_MIB = 1024 * 1024
_POLL_SECONDS = 0.02
_REAL_FILES = ("/usr/lib", "/usr/bin", "/usr/share")
_REQUEST = re.compile(r"http\.request\.method=(\w+)")

P = ParamSpec("P")


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, DockerRegistry(auth=False) as registry:
        folder = Path(name)
        nix = NixSandbox(folder / "nix")
        small = nix.build_paths(arguments.small, size=20_000)
        large = _build_large(nix, folder, arguments.mebibytes)
        settings = {
            "NIXCACHE_REGISTRY": registry.host,
            "NIXCACHE_REPO": "o/bench",
            "NIX_SIGNING_KEY": SecretKey.generate("bench-1").render(),
        }
        machine = Machine(folder / "machine", nix, settings)
        result = {"both": _measure(machine, registry, [*small, large])}
        ours, theirs = [], []
        for number in range(arguments.rounds):
            ours.append(_timed(_push, machine, small, f"small-{number}"))
            theirs.append(_timed(_upload_each, nix, registry.host, small, f"each-{number}"))
        result["small"] = _compare(ours, theirs)
        ours, theirs = [], []
        for number in range(arguments.rounds):
            ours.append(_timed(_push, machine, [large], f"large-{number}"))
            target = f"file://{folder}/copy-{number}?compression=zstd"
            theirs.append(_timed(nix.copy_to, target, [large]))
        result["large"] = _compare(ours, theirs)
    print(json.dumps(result, indent=2))


def _compare(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, object]:
    return {
        "seconds": [round(one, 2) for one in ours],
        "seconds_of_the_other": [round(one, 2) for one in theirs],
        "times_as_fast": round(sorted(theirs)[len(theirs) // 2] / sorted(ours)[len(ours) // 2], 2),
    }


def _measure(machine: Machine, registry: DockerRegistry, paths: Sequence[str]) -> dict[str, object]:
    """Push all at once, and watch memory, staged bytes and requests."""
    before = len(_REQUEST.findall(registry.log))
    process = machine.start("push", *paths, "--image", "both")
    watched = psutil.Process(process.pid)
    peak = staged = 0
    drained = threading.Thread(target=process.communicate)
    drained.start()
    while drained.is_alive():
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        staged = max(staged, sum(_size(path) for path in machine.folder.glob("nixcache-oci-*/*")))
        time.sleep(_POLL_SECONDS)
    drained.join()
    if process.returncode:
        raise RuntimeError(f"the publisher ended with {process.returncode}")
    requests = len(_REQUEST.findall(registry.log)) - before
    return {"peak_mib": round(peak / _MIB), "staged_mib": round(staged / _MIB), "requests": requests}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _timed(job: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    began = time.monotonic()
    job(*args, **kwargs)
    return time.monotonic() - began


def _push(machine: Machine, paths: Sequence[str], image: str) -> None:
    machine.run("push", *paths, "--image", image).check()


def _build_large(nix: NixSandbox, folder: Path, mebibytes: int) -> str:
    """Make a store path of so many bytes out of the programs and libraries of this machine."""
    path = folder / "large"
    left = mebibytes * _MIB
    with path.open("wb") as large:
        for top in _REAL_FILES:
            for each in sorted(Path(top).rglob("*")):
                if left and each.is_file() and not each.is_symlink():
                    content = each.read_bytes()[:left]
                    large.write(content)
                    left -= len(content)
    if left:
        raise RuntimeError(f"{' '.join(_REAL_FILES)} hold {left} bytes too few")
    added = nix.add_path(path)
    path.unlink()
    return added


def _upload_each(nix: NixSandbox, host: str, paths: Sequence[str], image: str) -> None:
    """Dump and compress each path by programs, and upload it, one after another."""
    for path in paths:
        dump = subprocess.Popen(
            ["nix-store", "--dump", str(nix.physical(path))], env=nix.environment(), stdout=subprocess.PIPE
        )
        content = subprocess.run(["xz", "-1"], stdin=dump.stdout, stdout=subprocess.PIPE, check=True).stdout
        dump.wait()
        begin = urllib.request.Request(f"http://{host}/v2/o/bench/{image}/blobs/uploads/", method="POST")
        with urllib.request.urlopen(begin) as answer:
            location = answer.headers["Location"]
        url = location if "://" in location else f"http://{host}{location}"
        joint = "&" if "?" in url else "?"
        put = urllib.request.Request(
            f"{url}{joint}digest={Digest.of(content)}",
            data=content,
            method="PUT",
            headers={"Content-Type": "application/octet-stream"},
        )
        with urllib.request.urlopen(put):
            pass


if __name__ == "__main__":
    main()
