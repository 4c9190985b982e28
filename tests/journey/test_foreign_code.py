"""A flake, a file and their builds run beside a publish: what they can read of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.clients.nix_story import SYSTEM, NixStory
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine

pytestmark = pytest.mark.needs("nix")

# As a workflow or a shell has them; the key comes beside them.
SECRETS = {
    "GITHUB_TOKEN": "ghs_1f7d",
    "GH_TOKEN": "ghp_2f7d",
    "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "oidc_3f7d",
    "ACTIONS_RUNTIME_TOKEN": "runtime_4f7d",
    "SOME_PASSWORD": "hunter_5f7d",
    "NIXCACHE_UPSTREAM": "http://user:pass_6f7d@127.0.0.1:1",
}
READ_ANCESTORS = """
  export PATH=/usr/bin:/bin; p=$$
  while [ "$p" -gt 1 ]; do
    { echo "process $p"; tr '\\\\0' '\\\\n' </proc/$p/environ; ls -l /proc/$p/fd; } >>$SEEN/ancestors
    p=$(sed -n 's/^PPid:[^0-9]*//p' /proc/$p/status)
  done
"""


@pytest.fixture
def story(tmp_path: Path) -> NixStory:
    """Give a Nix that builds without a sandbox, as the user that publishes."""
    return NixStory(tmp_path)


def publisher(story: NixStory, key: SecretKey) -> Machine:
    settings = {"NIXCACHE_REGISTRY": f"oci:{story.folder}/cache", "NIX_SIGNING_KEY": key.render(), **SECRETS}
    machine = Machine(story.folder / "machine", story.sandbox, settings)
    machine.environment |= {name: value for name, value in story.environment().items() if name == "PATH"}
    return machine


def assert_no_secret(text: str, key: SecretKey) -> None:
    assert [word for word in (key.render(), *SECRETS.values()) if word in text] == []


def test_a_build_finds_no_secret(story: NixStory, key: SecretKey) -> None:
    """Neither in its own environment, which may be any variable, nor in that of a process above it."""
    asked = " ".join(f'"{name}"' for name in ("NIX_SIGNING_KEY", "NIXCACHE_REGISTRY", "HOME", *SECRETS))
    flake = story.write_flake(
        f"""packages.{SYSTEM} = {{
          reader = mkFrom "reader" ''SEEN={story.folder}; {READ_ANCESTORS} echo > $out'';
          fetcher = derivation {{
            name = "source"; system = "{SYSTEM}"; builder = "/bin/sh";
            outputHashMode = "flat"; outputHashAlgo = "sha256";
            outputHash = "4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865";
            impureEnvVars = [ {asked} ];
            args = [ "-c" "export PATH=/usr/bin:/bin; env >{story.folder}/fetcher; echo 1 > $out" ];
          }};
        }};"""
    )
    ran = publisher(story, key).run("publish", flake).check()
    assert "2 paths pushed" in ran.stdout
    assert str(key.public_key) in ran.stdout
    fetcher, ancestors = (story.folder / "fetcher").read_text(), (story.folder / "ancestors").read_text()
    assert "HOME=" in fetcher
    assert ancestors.count("process ") >= 3
    assert "NIX_CONFIG=" in ancestors
    assert_no_secret(fetcher + ancestors, key)
    assert "memfd" not in ancestors


def test_an_expression_finds_no_secret(story: NixStory, key: SecretKey) -> None:
    """A file that is no flake may read the environment; what a user passes on by name, it finds."""
    names = " ".join(f'"{name}"' for name in ("NIX_SIGNING_KEY", *SECRETS, "CHOSEN"))
    folder = story.write(
        "file/default.nix",
        f"""{{ a = builtins.trace "SEEN ${{toString (map builtins.getEnv [ {names} ])}}" (derivation {{
          name = "a"; system = "{SYSTEM}"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
        }}); }}""",
    )
    told = ("publish", "--file", str(folder / "default.nix"), "--pass-env", "CHOSEN")
    ran = publisher(story, key).run(*told, CHOSEN="mine_7f7d").check()
    seen = [line for line in ran.stderr.splitlines() if "SEEN" in line]
    assert seen
    assert_no_secret("\n".join(seen), key)
    assert "mine_7f7d" in seen[0]


def test_a_secret_cannot_be_passed_on(story: NixStory, key: SecretKey) -> None:
    """One line names it, before anything runs."""
    ran = publisher(story, key).run("push", "x", "--pass-env", "SSH_AUTH_SOCK", "--pass-env", "GITHUB_TOKEN")
    assert ran.status == 2
    assert ": GITHUB_TOKEN is this program's own" in ran.stderr


def test_push_hides_its_secrets_as_well(story: NixStory, key: SecretKey) -> None:
    """It builds nothing, and others may build beside it: Nix, which it starts, sees the same as above."""
    (path,) = story.sandbox.build_paths(1)
    spy = story.write("bin/nix", "") / "nix"
    spy.write_text(
        f"#!/bin/sh\nPATH=/usr/bin:/bin\nSEEN={story.folder}\n{READ_ANCESTORS}\n".replace("\\\\", "\\")
    )
    with spy.open("a") as file:
        file.write(f'PATH={os.environ["PATH"]} exec nix "$@"\n')
    spy.chmod(0o755)
    machine = publisher(story, key)
    machine.environment["PATH"] = f"{spy.parent}:{machine.environment['PATH']}"
    machine.run("push", path).check()
    seen = (story.folder / "ancestors").read_text()
    assert "NIX_CONFIG=" in seen
    assert_no_secret(seen, key)


def test_a_proxy_hides_its_secrets_as_well(tmp_path: Path) -> None:
    """It serves the builds of a job, whose code may look at it; where its netrc file is, it still knows."""
    with ProxyProcess(tmp_path, NIXCACHE_REGISTRY=f"oci:{tmp_path}/cache", NETRC="/n", **SECRETS) as proxy:
        proxy.wait_ready()
        block = Path(f"/proc/{proxy.process.pid}/environ").read_text().split("\0")
    assert "NETRC=/n" in block
    assert [value for value in SECRETS.values() if value in "".join(block)] == []


def test_what_is_handed_over_is_all_there(tmp_path: Path) -> None:
    """Names, values with line breaks, and bytes that are no text; and nobody looks into its memory."""
    script = tmp_path / "script.py"
    script.write_text(
        "import ctypes, json, os, sys\n"
        "from nixcache_oci.clients.local_store.environment import hide_environment\n"
        "found = hide_environment(os.environ)\n"
        "block = open('/proc/self/environ', 'rb').read()\n"
        "is_open = [os.readlink(one) for one in os.scandir('/proc/self/fd') if os.path.islink(one)]\n"
        "dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)\n"  # PR_GET_DUMPABLE
        "print(json.dumps([found, ascii(block), sys.argv, sys.flags.isolated, dumpable,"
        " [name for name in is_open if 'memfd' in name]]))\n"
    )
    given = {
        "PATH": "/bin",
        "A_SECRET": "one\ntwo=\n",
        "ODD": os.fsdecode(b"\xff"),
        "EMPTY": "",
        "LANG": "C.UTF-8",
    }
    ran = subprocess.run(
        [sys.executable, "-I", str(script), "an argument", "--flag"],
        env=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found, block, argv, isolated, dumpable, left = json.loads(ran.stdout)
    assert found == given
    assert "one" not in block
    assert "PATH=/bin" in block
    assert argv == [str(script), "an argument", "--flag"]
    assert (isolated, dumpable, left) == (1, 0, [])


@pytest.mark.parametrize("given", ["77", "x", "-1"])
def test_a_descriptor_that_is_none(tmp_path: Path, given: str) -> None:
    """Whoever sets the variable by hand is told, in one line."""
    ran = subprocess.run(
        [sys.executable, "-m", "nixcache_oci", "push", "x"],
        env={"PATH": os.environ["PATH"], "NIXCACHE_SECRETS_FD": given},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("nixcache-oci: error: NIXCACHE_SECRETS_FD: ")
    assert len(ran.stderr.splitlines()) == 1
