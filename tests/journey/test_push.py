"""The verb ``push`` with real Nix: what is chosen, how it is sent, and what Nix says of it afterwards."""

import asyncio
import os
import random
import time
from pathlib import Path

import psutil
import pytest

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cache.table import Table
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import push_with, settings_of
from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.proxy import ProxyProcess
from tests.support.publish import publish_version1
from tests.support.publisher import Machine, assert_substitutable
from tests.support.registries import Ghcr
from tests.support.segments import read_tables

pytestmark = pytest.mark.needs("nix")

PATHS = 12
MIB = 1024 * 1024
MOST_REQUESTS = 60
MOST_BYTES = 300 * MIB


@pytest.fixture
def settings(ghcr: Ghcr, tmp_path: Path) -> dict[str, str]:
    return settings_of(ghcr, tmp_path)


@pytest.fixture
def machine(settings: dict[str, str], nix: NixSandbox, key: SecretKey, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", nix, {**settings, "NIX_SIGNING_KEY": key.render()})


def tables_of(ghcr: Ghcr) -> list[Table]:
    """What the segments list, the oldest first."""
    found: list[Table] = []

    async def read(repository: Repository) -> None:
        found.extend(await read_tables(repository, await read_listing(repository)))

    push_with(ghcr, read)
    return found


def records_in(tables: list[Table]) -> list[PublishRecord]:
    return [record for table in tables for record in table.records if isinstance(record, PublishRecord)]


def start_proxy(settings: dict[str, str], key: SecretKey, folder: Path) -> ProxyProcess:
    return ProxyProcess(folder, **settings, NIXCACHE_PUBLIC_KEYS=str(key.public_key))


@pytest.mark.parametrize("compression", ["zstd", "xz", "none"])
def test_nix_accepts_all_of_it(
    settings: dict[str, str],
    machine: Machine,
    nix: NixSandbox,
    key: SecretKey,
    tmp_path: Path,
    compression: str,
) -> None:
    """Realised and copied with signatures on, and what arrived verifies, contents and signatures."""
    paths = nix.build_paths(PATHS)
    paths.append(nix.build_file("large", random.Random(1).randbytes(5 * MIB)))
    machine.run("push", *paths, "--compression", compression).check()
    trusted = [str(key.public_key)]
    with start_proxy(settings, key, tmp_path / "proxy") as proxy:
        proxy.wait_ready()
        realised = nix.realise(paths, substituters=[proxy.url], trusted_keys=trusted).check().store
        trusting = nix.environment(substituters=[proxy.url], trusted_keys=trusted)
        copied = nix.new_store()
        nix.run("nix", "copy", "--from", proxy.url, "--to", str(copied), *paths, environment=trusting).check()
    for store in (realised, copied):
        verify = ("nix", "store", "verify", "--sigs-needed", "1", *paths)
        nix.run(*verify, store=store, environment=trusting).check()


def test_how_much_is_said(machine: Machine, nix: NixSandbox) -> None:
    """With `-q` the result alone; `-v` logs what is decided, `-vv` each request, whatever `-q` would say."""
    paths = nix.build_paths(3)
    quiet = machine.run("push", "-q", paths[0]).check()
    assert (quiet.stderr, " 1 path pushed (" in quiet.stdout) == ("", True)
    assert "0 to push" in machine.run("push", paths[0]).check().stderr
    said = machine.run("-v", "push", paths[1]).check().stderr
    for event in ("cache read", "segment pushed", "index written"):
        assert f'level=info event="{event}"' in said
    assert "level=debug" not in said
    assert "event=request method=PUT url=http" in machine.run("push", "-vv", paths[2]).check().stderr


def test_a_push_that_changes_nothing_writes_nothing(ghcr: Ghcr, machine: Machine, nix: NixSandbox) -> None:
    """Three pushes of a path make one segment; another name for it makes a record, without a NAR."""
    paths = nix.build_paths(PATHS)
    machine.run("push", paths[-1], "--root", "release").check()
    ghcr.server.reset_requests()
    for _ in range(2):
        again = machine.run("push", paths[-1], "--root", "release").check()
        assert "0 to push" in again.stderr
        assert again.stdout.splitlines()[0].endswith("nothing written: all of it is listed and recorded")
    changes = [one for one in ghcr.server.requests if one.operation.startswith(("upload", "manifest-put"))]
    assert changes == []
    assert len(tables_of(ghcr)) == 1
    machine.run("push", paths[-1], "--root", "another").check()
    assert ghcr.server.count("upload-put") == 1  # the table
    # Both may have been pushed within one second.
    second, first = sorted(tables_of(ghcr), key=lambda table: len(table.narinfos))
    assert second.narinfos == ()
    assert [record.scope for record in records_in([first, second])] == ["push/release", "push/another"]
    assert str(records_in([second])[0].roots[0][1]) == paths[-1]


def test_each_path_is_a_root_of_its_own(ghcr: Ghcr, machine: Machine, nix: NixSandbox) -> None:
    """Without --root, a path displaces only what was pushed under its own name; links and --stdin work."""
    one, other = nix.build_paths(1, seed="one")[0], nix.build_paths(1, seed="other")[0]
    (machine.folder / "result").symlink_to(one)
    machine.run("push", "./result", "--stdin", input_text=f"{other}\n\n").check()
    (table,) = tables_of(ghcr)
    assert {record.scope for record in records_in([table])} == {"push/one-o0", "push/other-o0"}
    assert all(record.is_partial for record in records_in([table]))


def test_one_path_that_is_gone_does_not_stop_the_others(machine: Machine, nix: NixSandbox) -> None:
    """Nor does a line that means no store object: each is named, the rest is published, exit status 1."""
    one, other = nix.build_paths(1, seed="one")[0], nix.build_paths(1, seed="other")[0]
    gone = str(Path(one).parent / f"{'0' * 32}-gone")
    lines = ["./missing", one, gone, "/etc/passwd", "no store path"]
    ran = machine.run("push", "--stdin", input_text="\n".join(lines))
    assert ran.status == 1
    assert f"{gone}: left out: it is not valid in this store" in ran.stderr
    assert ran.stderr.count("left out: ") == len(lines) - 1
    assert Path(one).name in machine.run("list").check().stdout
    # On the command line, too; and where nothing is left, that is the error.
    assert machine.run("push", gone, other).status == 1
    assert Path(other).name in machine.run("list").check().stdout
    ran = machine.run("push", "--stdin", input_text=f"{gone}\n./missing")
    assert (ran.status, ran.stdout) == (1, "")
    ran = machine.run("push", "--stdin", "--strict", input_text=f"{gone}\n{one}\n")
    assert (ran.status, "nothing is published" in ran.stderr) == (1, True)
    assert machine.run("push", "--stdin", "--dry-run", input_text=f"{gone}\n{one}\n").status == 1


def test_an_empty_list_is_nothing_to_do(machine: Machine) -> None:
    """A program that lists what was built may have built nothing."""
    ran = machine.run("push", "--stdin", input_text="\n \n").check()
    assert ran.stdout == "nothing to push: no paths on standard input\n"
    ran = machine.run("import", "https://cache.example.org", "--stdin").check()
    assert ran.stdout == "nothing to import: no paths on standard input\n"
    assert machine.run("push").status == 2


def test_without_closure(ghcr: Ghcr, machine: Machine, nix: NixSandbox) -> None:
    """Only what is named."""
    paths = nix.build_paths(PATHS)
    machine.run("push", paths[-1], "--no-closure").check()
    (table,) = tables_of(ghcr)
    assert [str(narinfo.store_path) for narinfo in table.narinfos] == [paths[-1]]


def test_a_dry_run_writes_nothing(ghcr: Ghcr, machine: Machine, nix: NixSandbox) -> None:
    """It says what would be pushed, and needs no right to push."""
    (path,) = nix.build_paths(1)
    Path(machine.environment["NIXCACHE_TOKEN_FILE"]).write_text(f"octocat:{ghcr.server.read_token}")
    ran = machine.run("push", path, "--dry-run").check()
    assert "1 path: 0 upstream, 0 cached, 1 to push" in ran.stderr
    assert ran.stdout.startswith(f"push {path} ")
    assert {record.method for record in ghcr.server.requests} <= {"GET", "HEAD"}


def test_a_new_key_signs_what_is_there(
    ghcr: Ghcr, settings: dict[str, str], machine: Machine, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Paths without a signature by every key are listed again, without their bytes, and keep the old one."""
    paths = nix.build_paths(PATHS)
    paths.append(nix.build_file("large", random.Random(1).randbytes(5 * MIB)))
    machine.run("push", *paths).check()
    ghcr.server.reset_requests()
    new = SecretKey.generate("journey-2")
    file = tmp_path / "new.sec"
    file.write_text(new.render())
    ran = machine.run("push", *paths, "--signing-key-file", str(file), "--new-key").check()
    assert f"0 cached, {PATHS + 1} to sign, 0 to push" in ran.stderr
    assert f": 0 paths pushed (0 B, 0 B compressed), {PATHS + 1} paths signed in " in ran.stdout
    assert ghcr.server.count("upload-put") == 1
    signed = {tuple(sig.key_name for sig in table.narinfos[0].sigs) for table in tables_of(ghcr)}
    assert signed == {(key.name,), (key.name, new.name)}
    for trusted in (key, new):
        with start_proxy(settings, trusted, tmp_path / trusted.name) as proxy:
            proxy.wait_ready()
            assert_substitutable(proxy, paths)


def test_what_is_only_signed_anew_is_sent_where_it_is_gone(
    ghcr: Ghcr, settings: dict[str, str], machine: Machine, nix: NixSandbox, tmp_path: Path
) -> None:
    """The registry lost a blob that the cache lists: it refuses the manifest, and gets the blob again."""
    path = nix.build_file("large", random.Random(1).randbytes(2 * MIB))
    machine.run("push", path).check()
    name = "octocat/hello/nix-cache"
    lost = max(ghcr.server.blobs(name).items(), key=lambda blob: blob[1])[0]
    ghcr.server.delete_blob(name, lost)
    new = SecretKey.generate("journey-2")
    ran = machine.run("push", path, "--new-key", NIX_SIGNING_KEY=new.render()).check()
    assert "1 to sign, 0 to push" in ran.stderr
    with start_proxy(settings, new, tmp_path / "proxy") as proxy:
        proxy.wait_ready()
        assert_substitutable(proxy, [path])


@pytest.mark.needs("nginx")
async def test_what_an_upstream_signed_stays_there(machine: Machine, nix: NixSandbox, tmp_path: Path) -> None:
    """By the key's name; asked whether it really has it, what it lacks is pushed."""
    paths = nix.build_paths(PATHS)
    secret, _ = nix.generate_key("up-1")
    nix.sign(paths[:6], secret)
    named = machine.run("push", *paths, "--upstream-key-name", "up-1", "--dry-run").check()
    assert f"{PATHS} paths: 6 upstream, 0 cached, {PATHS - 6} to push" in named.stderr
    served = tmp_path / "served"
    nix.copy_to(f"file://{served}", paths[:1]).check()
    async with nginx(tmp_path / "nginx", served) as url:
        ask = ("--upstream-key-name", "up-1", "--verify-upstream", "--upstream", url, "--dry-run")
        asked = await asyncio.to_thread(machine.run, "push", *paths, *ask)
    assert f"{PATHS} paths: 1 upstream, 0 cached, {PATHS - 1} to push" in asked.stderr


def test_a_version1_cache_is_converted(
    ghcr: Ghcr, settings: dict[str, str], machine: Machine, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """At the first publish; what its registry swept is named, and sent again where this machine has it."""
    paths = nix.build_paths(PATHS)
    (more,) = nix.build_paths(1, seed="more")
    objects = [one.signed(key) for one in read_objects(nix, paths)]
    push_with(ghcr, lambda client: publish_version1(client, objects, public_key=str(key.public_key)))
    lost = objects[-1].compressed()[0]
    assert lost.file_hash is not None
    blobs = ghcr.server.blobs("octocat/hello/nix-cache")
    (digest,) = (one for one in blobs if bytes.fromhex(one.hex) == lost.file_hash.digest)
    ghcr.server.delete_blob("octocat/hello/nix-cache", digest)
    ran = machine.run("push", *paths, more).check()
    assert f"version 1 entry {lost.store_path.base_name}: left out" in ran.stderr
    ghcr.server.sweep()
    with start_proxy(settings, key, tmp_path / "proxy") as proxy:
        proxy.wait_ready()
        assert_substitutable(proxy, [*paths, more])


def test_bounds(ghcr: Ghcr, machine: Machine, nix: NixSandbox) -> None:
    """A thousand small paths and a large one: few requests, and memory does not grow with either."""
    paths = nix.build_paths(1000)
    paths.append(nix.build_file("large", os.urandom(256 * MIB)))
    process = machine.start("push", *paths)
    watched, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.01)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert peak < MOST_BYTES
    assert len(ghcr.server.requests) <= MOST_REQUESTS
