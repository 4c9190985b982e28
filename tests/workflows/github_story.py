"""Somebody's repository at GitHub, whose workflows run here: a remote, a registry, and machines with Nix."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cli.starter import PLACEHOLDER, PLACEHOLDER_REF
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.clients.nix_story import SYSTEM, NixStory
from tests.support.journey import push_with
from tests.support.registries import REPO, Ghcr
from tests.support.segments import read_records
from tests.workflows.documents import EVERY_FILE, TOP
from tests.workflows.machine import Event, Machine, Result

CHECKOUT: Final = "actions/checkout"
INSTALLER: Final = "cachix/install-nix-action"
MAIN: Final = "refs/heads/main"
ONE: Final = 'one = mk "one" "echo ${dep.text} > $out";'

# As actions/checkout does it: one commit, on its branch where it is of one.
_CHECKOUT: Final = """
git init --quiet --initial-branch=unborn
git remote add origin "file://{remote}"
git fetch --quiet --depth=1 origin "$COMMIT"
case $COMMIT-$GITHUB_REF in
  "$GITHUB_SHA-refs/heads/"*) git checkout --quiet -B "${{GITHUB_REF#refs/heads/}}" FETCH_HEAD ;;
  *) git checkout --quiet --detach FETCH_HEAD ;;
esac
"""


@dataclass(eq=False)
class GithubStory:
    """A repository with the template's workflows.

    Attributes:
        folder: for all of it.
        ghcr: the registry.
        key: that the cache is signed with; the repository has it as a secret.
        nix: the machines' Nix. All of them share a store, so that only the first builds.
        programs: what else every machine has: name and script of each.
    """

    folder: Path
    ghcr: Ghcr
    key: SecretKey
    nix: NixStory
    programs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._machines = 0
        self.own_actions = self.folder / "own-actions"
        self.actions = {f"{PLACEHOLDER}@{PLACEHOLDER_REF}": self.own_actions}
        shutil.copytree(TOP / "workflows", self.own_actions / "workflows")
        # This checkout's program; the setup action's test runs the real one.
        program = f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -m nixcache_oci "$@"\n'
        self.program = self.folder / "program/nixcache-oci"
        self.program.parent.mkdir()
        self.program.write_text(program)
        self.program.chmod(0o755)
        on_path = f'echo "{self.program.parent}" >>"$GITHUB_PATH"'
        write_stub(self.own_actions / "workflows/setup", on_path)
        self.stub(INSTALLER, "echo Nix is installed")
        self.stub(CHECKOUT, _CHECKOUT.format(remote=self.remote))
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        self.git("config", "uploadpack.allowAnySHA1InWant", "true", folder=self.remote)
        self.git("init", "--quiet", "--initial-branch=main", str(self.clone))

    @property
    def remote(self) -> Path:
        return self.folder / "remote.git"

    @property
    def clone(self) -> Path:
        """Where the repository's owner works."""
        return self.folder / "clone"

    # What the owner does

    def commit(self, files: Mapping[str, str]) -> str:
        """Write files, commit and push them; gives the commit."""
        for name, text in files.items():
            path = self.clone / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all", folder=self.clone)
        self.git("commit", "--quiet", "--message", "by the owner", folder=self.clone)
        self.git("push", "--quiet", f"file://{self.remote}", f"HEAD:{MAIN}", folder=self.clone)
        return self.head("HEAD", folder=self.clone)

    def commit_flake(self, packages: str = ONE, text: str = "text", settings: str = "") -> str:
        """Commit a flake with its lock in the folder that is published; gives the commit.

        ``mk`` makes a derivation of a name and a script; ``dep.text`` is what the flake's one input says.
        """
        folder = self.clone / "config"
        folder.mkdir(exist_ok=True)
        (folder / "flake.nix").write_text(f"""{{ {settings}
          inputs.dep.url = "{self.write_input(text)}";
          outputs = {{ self, dep }}: let
            mk = name: script: derivation {{
              inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
              args = [ "-euc" script ];
            }};
          in {{ packages.{SYSTEM} = {{ {packages} }}; }};
        }}""")
        self.nix.sandbox.run("nix", "flake", "lock", f"path:{folder}").check()
        return self.commit({})

    def write_input(self, text: str) -> str:
        """Write the flake that the repository's own flake takes as an input; gives its reference."""
        folder = self.nix.write("dep/flake.nix", f'{{ outputs = {{ self }}: {{ text = "{text}"; }}; }}')
        return f"path:{folder}"

    def head(self, ref: str = MAIN, *, folder: Path | None = None) -> str:
        """Tell the commit that a ref of the remote names."""
        return self.git("rev-parse", ref, folder=folder or self.remote).strip()

    def changed_files(self, commit: str = MAIN) -> dict[str, str]:
        """Tell what a commit at the remote did to each file: A, M or D."""
        lines = self.git("diff-tree", "--no-commit-id", "--name-status", "-r", commit, folder=self.remote)
        return {line.split("\t")[1]: line[0] for line in lines.splitlines()}

    def describe(self, commit: str = MAIN) -> str:
        """Tell a commit's author and message."""
        return self.git("log", "-1", "--format=%an <%ae>|%s", commit, folder=self.remote).strip()

    def show(self, name: str, commit: str = MAIN) -> str:
        """Read a file at the remote."""
        return self.git("show", f"{commit}:{name}", folder=self.remote)

    def records(self) -> list[PublishRecord]:
        """What publishes left for gc, the oldest first."""
        found: list[PublishRecord] = []

        async def read(repository: Repository) -> None:
            found.extend(await read_records(repository, await read_listing(repository)))

        push_with(self.ghcr, read)
        return found

    # What GitHub does

    def machine(self, event: Event | None = None) -> Machine:
        """Start a machine, with nothing checked out."""
        self._machines += 1
        server = self.ghcr.server
        environment = {
            **self.nix.environment(),
            "GITHUB_REPOSITORY": REPO,
            "GITHUB_API_URL": server.api_url,
            "GITHUB_RUN_ID": str(self._machines),
            "NIXCACHE_REGISTRY": server.host,
            "NIXCACHE_UPSTREAM": "",
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE")},
        }
        secrets = {"NIX_SIGNING_KEY": self.key.render(), "GITHUB_TOKEN": server.token}
        folder = self.folder / f"machine-{self._machines}"
        machine = Machine(folder, environment, event or Event(), secrets, self.actions)
        for name, script in self.programs.items():
            machine.put(name, script)
        return machine

    def checked_out(self, event: Event | None = None) -> Machine:
        """Start a machine that has the program, and main checked out."""
        machine = self.machine(event)
        machine.put("nixcache-oci", self.program.read_text())
        self.git("clone", "--quiet", "--depth=1", f"file://{self.remote}", str(machine.workspace))
        return machine

    def run(self, workflow: Path, event: Event | None = None) -> Result:
        """Run a workflow; no step of it says the secret key."""
        event = event or Event()
        sha = event.sha or self.head(event.ref)
        result = self.machine(Event(event.name, event.ref, event.payload, sha)).run(workflow)
        assert self.key.render() not in result.log
        return result

    def stub(self, name: str, script: str) -> None:
        """Have a script stand for somebody else's action, at the commit that the files name."""
        (pinned,) = {
            found for path in EVERY_FILE for found in re.findall(rf"{name}@[0-9a-f]{{40}}", path.read_text())
        }
        self.actions[pinned] = self.folder / "stubs" / name
        write_stub(self.actions[pinned], script)

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        """Run git as the owner; gives what it printed."""
        owner: Sequence[str] = ["-c", "user.name=Owner", "-c", "user.email=owner@example.org"]
        return subprocess.run(
            ["git", *owner, *arguments],
            cwd=folder or self.folder,
            env=self.nix.environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout


def write_stub(folder: Path, script: str) -> None:
    """Write an action of one script, which finds the input ``ref`` as COMMIT."""
    step = {"shell": "bash", "run": script, "env": {"COMMIT": "${{ inputs.ref }}"}}
    inputs = {"ref": {"default": "${{ github.sha }}"}}
    folder.mkdir(parents=True, exist_ok=True)
    action = {"name": "stub", "inputs": inputs, "runs": {"using": "composite", "steps": [step]}}
    (folder / "action.yml").write_text(json.dumps(action))
