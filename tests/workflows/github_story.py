"""Somebody's repository at GitHub, whose workflows run here: a remote, a registry, and machines with Nix."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from nixcache_oci.cache.listing import read_listing
from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.clients.nix_story import SYSTEM, NixStory
from tests.support.journey import push_with
from tests.support.registries import REPO, Ghcr
from tests.support.segments import read_records
from tests.workflows.documents import HERE, TOP
from tests.workflows.expression import Value
from tests.workflows.runner import Event, Job, Permitted, Player, Result
from tests.workflows.workflow import permissions_of, run_job

CHECKOUT: Final = "actions/checkout"
SETUP: Final = f"{HERE}workflows/setup"

# Takes a push only from a job that may write to the repository: local transports hand the environment on.
_HOOK: Final = """#!/bin/sh
[ "$RUNNER_CONTENTS" = write ] || { echo 'remote: Permission denied' >&2; exit 1; }
"""


@dataclass(eq=False)
class GithubStory:
    """A repository with the template's workflows.

    Attributes:
        folder: for all of it.
        ghcr: the registry.
        key: that the cache is signed with; the repository has it as a secret.
        nix: the machines' Nix. All of them share a store, so that only the first builds.
        players: of other people's actions; checkout and setup are played unless a test takes them away.
    """

    folder: Path
    ghcr: Ghcr
    key: SecretKey
    nix: NixStory
    players: dict[str, Player] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._jobs = 0
        self.players |= {CHECKOUT: self._play_checkout, SETUP: self._play_setup}
        self._environment = {
            **self.nix.environment(),
            "GITHUB_REPOSITORY": REPO,
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_API_URL": self.ghcr.server.api_url,
            "NIXCACHE_REGISTRY": self.ghcr.server.host,
            "NIXCACHE_UPSTREAM": "",
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE")},
        }
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.remote))
        self.git("config", "uploadpack.allowAnySHA1InWant", "true", folder=self.remote)
        hook = self.remote / "hooks/pre-receive"
        hook.write_text(_HOOK)
        hook.chmod(0o755)
        self.git("init", "--quiet", "--initial-branch=main", str(self.clone))

    @property
    def remote(self) -> Path:
        return self.folder / "remote.git"

    @property
    def clone(self) -> Path:
        """Where the repository's owner works."""
        return self.folder / "clone"

    # What the owner does

    def commit(self, files: Mapping[str, str], *, ref: str = "refs/heads/main") -> str:
        """Write files, commit and push them; gives the commit."""
        for name, text in files.items():
            path = self.clone / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all", folder=self.clone)
        self.git("commit", "--quiet", "--message", "by the owner", folder=self.clone)
        self.git("push", "--quiet", f"file://{self.remote}", f"HEAD:{ref}", folder=self.clone)
        return self.head("HEAD", folder=self.clone)

    def commit_flake(self, text: str) -> str:
        """Commit a flake with its lock in the folder that is published; gives the commit."""
        folder = self.clone / "config"
        folder.mkdir(exist_ok=True)
        (folder / "flake.nix").write_text(text)
        self.nix.sandbox.run("nix", "flake", "lock", f"path:{folder}").check()
        return self.commit({})

    def commit_tree(self, folder: Path) -> None:
        """Commit a copy of a folder."""
        shutil.copytree(folder, self.clone / folder.name)
        self.commit({})

    def write_input(self, text: str) -> str:
        """Write the flake that the repository's own flake takes as an input; gives its reference."""
        folder = self.nix.write("dep/flake.nix", f'{{ outputs = {{ self }}: {{ text = "{text}"; }}; }}')
        return f"path:{folder}"

    def tag(self, name: str) -> None:
        """Tag what main has."""
        self.git("tag", name, "main", folder=self.remote)

    def head(self, ref: str = "refs/heads/main", *, folder: Path | None = None) -> str:
        """Tell the commit that a ref of the remote names."""
        return self.git("rev-parse", ref, folder=folder or self.remote).strip()

    def changed_files(self, commit: str) -> dict[str, str]:
        """Tell what a commit at the remote did to each file: A, M or D."""
        lines = self.git("diff-tree", "--no-commit-id", "--name-status", "-r", commit, folder=self.remote)
        return {line.split("\t")[1]: line[0] for line in lines.splitlines()}

    def author(self, commit: str) -> str:
        return self.git("log", "-1", "--format=%an <%ae>", commit, folder=self.remote).strip()

    def show(self, name: str, commit: str = "refs/heads/main") -> str:
        """Read a file at the remote."""
        return self.git("show", f"{commit}:{name}", folder=self.remote)

    # What GitHub does

    def job(self, event: Event | None = None, permissions: Mapping[str, str] | None = None) -> Job:
        """Start a machine; a token that may write packages only where the permissions say so."""
        self._jobs += 1
        given = permissions or {}
        server = self.ghcr.server
        token = server.token if given.get("packages") == "write" else server.read_token
        return Job(
            folder=self.folder / f"job-{self._jobs}",
            environment=dict(self._environment),
            event=event or Event(),
            permitted=Permitted(given, token),
            players=self.players,
            run_id=str(self._jobs),
        )

    def run(
        self,
        workflow: Path,
        name: str,
        *,
        event: Event | None = None,
        needs: Mapping[str, Result] | None = None,
        inputs: Mapping[str, Value] | None = None,
    ) -> Result:
        """Run one job of a workflow, where that has a matrix, on this machine only."""
        job = self.job(event, permissions_of(workflow, name))
        contexts: dict[str, Value] = {
            "secrets": {"NIX_SIGNING_KEY": self.key.render()},
            "inputs": {"dry-run": None, **(inputs or {})},
        }
        result = run_job(job, workflow, name, contexts=contexts, needs=needs or {})
        assert self.key.render() not in result.log
        return result

    def records(self) -> list[PublishRecord]:
        """What publishes left for gc, the oldest first."""
        found: list[PublishRecord] = []

        async def read(repository: Repository) -> None:
            found.extend(await read_records(repository, await read_listing(repository)))

        push_with(self.ghcr, read)
        return found

    def _play_checkout(self, job: Job, given: Mapping[str, str]) -> Mapping[str, str]:
        """Do as actions/checkout does, which keeps no credentials here."""
        assert given["persist-credentials"] == "false"
        event = job.event
        if "ref" in given:
            self.check_out(job, given["ref"])
        else:
            self.check_out(job, event.sha or event.ref, event.ref)
        return {}

    def check_out(self, job: Job, commit: str, ref: str = "") -> None:
        """Fetch one commit into a job's workspace; under the branch's name, where the ref is one."""
        self.git("init", "--quiet", "--initial-branch=unborn", str(job.workspace))
        self.git("remote", "add", "origin", f"file://{self.remote}", folder=job.workspace)
        self.git("fetch", "--quiet", "--depth=1", "origin", commit, folder=job.workspace)
        how = ["-B", ref.removeprefix("refs/heads/")] if ref.startswith("refs/heads/") else ["--detach"]
        self.git("checkout", "--quiet", *how, "FETCH_HEAD", folder=job.workspace)

    def _play_setup(self, job: Job, given: Mapping[str, str]) -> Mapping[str, str]:
        """Put this checkout's program on PATH, as workflows/setup does it; its test runs the real one."""
        assert given.keys() <= {"nix"}
        program = job.temp / "bin/nixcache-oci"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nPYTHONPATH={TOP} exec {sys.executable} -m nixcache_oci "$@"\n')
        program.chmod(0o755)
        job.environment["PATH"] = os.pathsep.join([str(program.parent), job.environment["PATH"]])
        return {"version": "0"}

    def git(self, *arguments: str, folder: Path | None = None) -> str:
        """Run git as the owner; gives what it printed."""
        owner: Sequence[str] = ["-c", "user.name=Owner", "-c", "user.email=owner@example.org"]
        return subprocess.run(
            ["git", *owner, *arguments],
            cwd=folder or self.folder,
            env={**self.nix.environment(), "RUNNER_CONTENTS": "write"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout


def flake(packages: str, dependency: str) -> str:
    """Write a flake with one input; ``mk`` makes a derivation of a name and a script."""
    return f"""{{
  inputs.dep.url = "{dependency}";
  outputs = {{ self, dep }}: let
    mk = name: script: derivation {{
      inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; PATH = "/bin:/usr/bin";
      args = [ "-euc" script ];
    }};
  in {{ packages.{SYSTEM} = {{ {packages} }}; }};
}}
"""
