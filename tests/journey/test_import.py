"""An existing binary cache taken in as it is, and served to real Nix out of the registry."""

import asyncio
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.nix.store_path import StorePath
from nixcache_oci.oci.descriptor import EMPTY_CONFIG
from nixcache_oci.wording import counted
from tests.support.journey import settings_of
from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine
from tests.support.registries import Ghcr

pytestmark = pytest.mark.needs("nix")

PATHS = 8
KILLS = 2
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """A binary cache in a folder, as ``nix copy`` wrote it, signed by a key that this cache never has.

    Attributes:
        folder: where it is.
        paths: references first; the last one is large.
        public_key: of who signed it.
    """

    folder: Path
    paths: Sequence[str]
    public_key: str

    def narinfo_path(self, path: str) -> Path:
        return self.folder / f"{StorePath.parse(path).hash_part}.narinfo"

    def narinfo(self, path: str) -> NarInfo:
        return NarInfo.parse(self.narinfo_path(path).read_bytes())


def make_source(nix: NixSandbox, folder: Path, compression: str = "zstd") -> Source:
    secret, public = nix.generate_key("elsewhere-1")
    paths = [*nix.build_paths(PATHS), nix.build_file("large", random.Random(1).randbytes(5 * MIB))]
    nix.copy_to(f"file://{folder}?compression={compression}&secret-key={secret}", paths).check()
    return Source(folder, paths, public)


@pytest.fixture
def machine(ghcr: Ghcr, nix: NixSandbox, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", nix, settings_of(ghcr, tmp_path))


def check_served(
    machine: Machine, nix: NixSandbox, paths: Sequence[str], keys: Sequence[str], folder: Path
) -> None:
    """Let real Nix substitute all of it into an empty store, with signatures required."""
    settings = {name: value for name, value in machine.environment.items() if name.startswith("NIXCACHE_RE")}
    settings["NIXCACHE_TOKEN_FILE"] = machine.environment["NIXCACHE_TOKEN_FILE"]
    with ProxyProcess(folder, **settings) as proxy:
        proxy.wait_ready()
        nix.realise(paths, substituters=[proxy.url], trusted_keys=keys).check()


@pytest.mark.parametrize("compression", ["xz", "none"])
def test_a_folder_that_nix_wrote(machine: Machine, nix: NixSandbox, tmp_path: Path, compression: str) -> None:
    """Signatures and compressed bytes are kept; a second run sends nothing, and says so."""
    source = make_source(nix, tmp_path / "source", compression)
    ran = machine.run("import", f"file://{source.folder}").check()
    assert f"{PATHS + 1} paths: 0 upstream, 0 cached, {PATHS + 1} to push" in ran.stderr
    assert f"{PATHS + 1} paths pushed" in ran.stdout
    check_served(machine, nix, source.paths, [source.public_key], tmp_path / "proxy")
    again = machine.run("import", str(source.folder)).check()
    assert f"{PATHS + 1} cached, 0 to push" in again.stderr
    assert " 0 paths pushed" in again.stdout


@pytest.mark.needs("nginx")
async def test_a_web_server_gives_what_is_asked_for(
    machine: Machine, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """It cannot be listed: paths come with their closures; our signature stands beside the other one."""
    source = make_source(nix, tmp_path / "source", "xz")
    machine.environment["NIX_SIGNING_KEY"] = key.render()
    async with nginx(tmp_path / "nginx", source.folder) as url:
        refused = await asyncio.to_thread(machine.run, "import", url)
        assert (refused.status, refused.stdout) == (2, "")
        assert "cannot be asked what it has" in refused.stderr
        *_, last, large = source.paths
        closure = nix.path_info([last], recursive=True)
        ran = (await asyncio.to_thread(machine.run, "import", url, last)).check()
        assert f"{len(closure)} paths pushed" in ran.stdout
        parts = "".join(f"{StorePath.parse(path).hash_part}\n" for path in source.paths)
        more = (
            await asyncio.to_thread(lambda: machine.run("import", url, "--stdin", input_text=parts))
        ).check()
        assert f"{counted(PATHS + 1 - len(closure), 'path')} pushed" in more.stdout
        absent = await asyncio.to_thread(
            machine.run, "import", url, large.replace("large", "small"), "0" * 32
        )
        assert absent.status == 1
        assert f"it is not {large.replace('large', 'small')}" in absent.stderr
        assert f"has no {'0' * 32}.narinfo" in absent.stderr
    for signer in (source.public_key, str(key.public_key)):
        folder = tmp_path / signer.partition(":")[0]
        await asyncio.to_thread(check_served, machine, nix, source.paths, [signer], folder)


def test_only_what_trusted_keys_signed(machine: Machine, nix: NixSandbox, tmp_path: Path) -> None:
    """With NIXCACHE_PUBLIC_KEYS, others are named and left out; without, all come and the unsigned count."""
    source = make_source(nix, tmp_path / "source")
    (unsigned,) = nix.build_paths(1, seed="unsigned")
    nix.copy_to(f"file://{source.folder}?compression=zstd", [unsigned]).check()
    ran = machine.run("import", str(source.folder), NIXCACHE_PUBLIC_KEYS=source.public_key)
    assert ran.status == 1
    assert f"{Path(unsigned).name}: left out: none of the keys in NIXCACHE_PUBLIC_KEYS" in ran.stderr
    assert f" {PATHS + 1} paths pushed" in ran.stdout
    ran = machine.run("import", str(source.folder), "--allow-unsigned").check()
    assert "warning: 1 unsigned path, which Nix refuses" in ran.stderr
    assert " 1 path pushed" in ran.stdout


@pytest.mark.timeout(300)
def test_killed_anywhere_it_is_whole_or_not_there(
    ghcr: Ghcr, machine: Machine, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """The next run completes it, and no blob goes over the line twice."""
    source = make_source(nix, tmp_path / "source")
    everything = [*source.paths, nix.build_file("huge", random.Random(2).randbytes(20 * MIB))]
    nix.copy_to(f"file://{source.folder}?compression=zstd", everything).check()
    began = time.monotonic()
    machine.environment["NIX_SIGNING_KEY"] = key.render()
    machine.run("import", str(source.folder), "--image", "unhurried").check()
    usual = time.monotonic() - began
    moments = random.Random(3)
    for number in range(KILLS):
        image = f"kill-{number}"
        process = machine.start("import", str(source.folder), "--image", image)
        try:
            process.wait(moments.uniform(0.5, 1) * usual)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        listed = len(machine.run("list", "--image", image).stdout.splitlines())
        assert listed in (0, len(everything))
        again = machine.run("import", str(source.folder), "--image", image).check()
        assert f"{len(everything) - listed} to push" in again.stderr
        machine.run("verify", "--content", "--image", image).check()
        sent = Counter(
            record.path.rpartition("digest=")[2]
            for record in ghcr.server.requests
            if record.operation == "upload-put" and f"/{image}/" in record.path and record.status == 201
        )
        sent.pop(quote(str(EMPTY_CONFIG.digest), safe=""), None)
        assert max(sent.values()) == 1, sent


def test_gc_keeps_what_was_imported(machine: Machine, nix: NixSandbox, tmp_path: Path) -> None:
    """Whatever nothing else refers to is a root; --dry-run says what would come, and writes nothing."""
    source = make_source(nix, tmp_path / "source")
    dry = machine.run("import", str(source.folder), "--dry-run").check()
    assert sorted(line.split()[1] for line in dry.stdout.splitlines()) == sorted(source.paths)
    assert "there is no cache at" in machine.run("list").stderr
    machine.run("import", str(source.folder)).check()
    time.sleep(1.1)  # times are told to the second
    machine.run("gc", "--min-age-hours", "0", "--retention-days", "0", "--grace-days", "0", "--force").check()
    assert len(machine.run("list").check().stdout.splitlines()) == PATHS + 1
    roots = machine.run("list", "--roots").check().stdout
    assert f"import/{source.folder}" in roots
    assert Path(source.paths[-1]).name in roots
    assert Path(source.paths[0]).name not in roots


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("nowhere", 1, "nowhere: there is no such folder"),
        ("file:///nowhere", 1, "/nowhere: there is no such folder"),
        ("file://host/path", 2, "expected file:///path"),
        ("empty", 1, "is not a binary cache: it has no nix-cache-info"),
        ("other", 1, "is for the store /elsewhere, and this cache for /nix/store; see NIXCACHE_STORE_DIR"),
        ("http://", 2, "upstream"),
    ],
)
def test_what_cannot_be_imported(machine: Machine, source: str, status: int, words: str) -> None:
    """One line says what is wrong, and nothing is written."""
    (machine.folder / "empty").mkdir()
    (machine.folder / "other").mkdir()
    (machine.folder / "other/nix-cache-info").write_text("StoreDir: /elsewhere\n")
    arguments = ["0" * 32] if source.startswith("http") else []
    ran = machine.run("import", source, *arguments)
    assert (ran.status, ran.stdout) == (status, "")
    assert words in ran.stderr.splitlines()[-1]
    assert "there is no cache at" in machine.run("list").stderr
