"""services.nixcache-queue: the service, the hook, and what is refused."""

import argparse
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nixcache_oci.cli.main import load_verb
from nixcache_oci.queue.hook import render_hook
from tests.support.nix import NixSandbox
from tests.support.nix_modules import STANDIN, TOP, USABLE, Evaluated, Modules, home_unit, service_unit
from tests.support.programs import require_program

pytestmark = pytest.mark.needs("nix-instantiate")

UNIT = "nixcache-queue"


def evaluate(modules: Modules, kind: str = "nixos", more: str = "", **options: object) -> Evaluated:
    """Evaluate the queue's module beside the proxy's, whose cache is the queue's by default."""
    given = json.dumps(json.dumps({"enable": True, **options})).replace("${", "\\${")
    module = f"""{{
      services.nixcache-queue = builtins.fromJSON {given} // {{
        package = {{ outPath = "{modules.package}"; }};
      }};
      {more}
    }}"""
    return modules.evaluate(kind, more=module, **USABLE)


def service_of(evaluated: Evaluated) -> dict[str, Any]:
    found: dict[str, Any] = evaluated.config["systemd"]["services"][UNIT]
    return found


def parse(words: list[str]) -> argparse.Namespace:
    """Parse what follows the program's name, as the program does."""
    parser = argparse.ArgumentParser()
    assert words[0] == "queue"
    load_verb("queue").add_arguments(parser)
    return parser.parse_args(words[1:])


def words_of(evaluated: Evaluated, kind: str) -> list[str]:
    if kind == "darwin":
        daemon = evaluated.config["launchd"]["daemons"][UNIT]["serviceConfig"]
        return list(daemon["ProgramArguments"][1:])
    if kind == "home":
        unit = evaluated.config["systemd"]["user"]["services"][UNIT]["Service"]
        return _words(unit["ExecStart"])
    return _words(service_of(evaluated)["serviceConfig"]["ExecStart"])


def _words(line: str) -> list[str]:
    return shlex.split(line.replace("%%", "%").replace("$$", "$"))[1:]


@pytest.mark.parametrize("kind", ["nixos", "darwin", "home"])
def test_the_program_takes_what_the_module_says(modules: Modules, kind: str) -> None:
    """Each flag is one that `queue run` has, whatever its value holds."""
    evaluated = evaluate(
        modules, kind, scope="100%-$x", wait=7, watch=True, extraFlags=["--upstream-key-name", "a-1"]
    )
    assert evaluated.failed == []
    flags = parse(words_of(evaluated, kind))
    assert (flags.action, flags.scope, flags.wait, flags.watch) == ("run", "100%-$x", 7, True)
    assert flags.upstream_key_name == ["a-1"]


@pytest.mark.parametrize(("kind", "is_watching"), [("nixos", False), ("darwin", False), ("home", True)])
def test_where_there_is_a_hook_nothing_is_watched(modules: Modules, kind: str, *, is_watching: bool) -> None:
    """Watching publishes more than what is built; a user's queue has no other way in."""
    evaluated = evaluate(modules, kind)
    assert parse(words_of(evaluated, kind)).watch == is_watching
    assert ("post-build-hook" in evaluated.nix_settings) != is_watching


def test_the_hook_is_that_of_the_program(nix: NixSandbox) -> None:
    """But for its first line, which Nix writes, and for quotes, which a shell needs or not."""
    expression = f"""(import {TOP}/nix/queue.nix {{
      lib = import {STANDIN}/lib.nix; cfg = {{ }}; pkgs = {{ }}; hookIs = null; folder = "/it's";
    }}).hookText"""
    text = nix.run("nix-instantiate", "--eval", "--json", "-E", expression).check().stdout
    usual = render_hook(Path("/it's")).removeprefix("#!/bin/sh\n")
    (line,) = set(usual.splitlines()) - set(json.loads(text).splitlines())
    (other,) = set(json.loads(text).splitlines()) - set(usual.splitlines())
    assert shlex.split(line) == shlex.split(other) == ["events=/it's/events"]


@pytest.mark.parametrize("kind", ["nixos", "darwin"])
def test_the_hook_is_where_only_root_writes(modules: Modules, kind: str) -> None:
    """The daemon runs it as root."""
    assert str(evaluate(modules, kind).nix_settings["post-build-hook"]).startswith("/nix/store/")


@pytest.mark.parametrize("kind", ["nixos", "darwin"])
def test_another_hook_is_refused(modules: Modules, kind: str) -> None:
    """Nix runs one; to replace what the owner set would lose what that does, and to lose ours all else."""
    other = 'nix.settings.post-build-hook = "/etc/hook";'
    (message,) = evaluate(modules, kind, more=other).failed
    assert "post-build-hook is set to another hook" in message
    assert evaluate(modules, kind, more=other, hook=False, watch=True).failed == []


def test_secrets_are_credentials(modules: Modules) -> None:
    """The service's own user can read neither file; in the Nix store every user could."""
    service = service_of(evaluate(modules, tokenFile="/run/t", signingKeyFile="/run/100%.sec"))
    assert service["serviceConfig"]["LoadCredential"] == ["token:/run/t", "key:/run/100%%.sec"]
    assert service["environment"]["NIXCACHE_TOKEN_FILE"] == "%d/token"
    assert service["environment"]["NIXCACHE_SIGNING_KEY_FILE"] == "%d/key"
    assert service["environment"]["NIXCACHE_REPO"] == USABLE["repo"]
    failed = evaluate(modules, signingKeyFile="/nix/store/x/key").failed
    assert ["signingKeyFile is in the Nix store" in one for one in failed] == [True]


def test_who_manages_nix_otherwise_is_told_the_line(modules: Modules) -> None:
    """Nothing would run the hook, and nothing would be published."""
    more = "nix.enable = false; services.nixcache-proxy.configureNix = false;"
    (warning,) = evaluate(modules, more=more).warnings
    assert "post-build-hook = /nix/store/" in warning


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("kind", ["nixos", "home"])
def test_systemd_understands_every_line(modules: Modules, tmp_path: Path, kind: str) -> None:
    """A key that is misspelt is ignored with a warning, and protects nothing."""
    evaluated = evaluate(modules, kind, tokenFile="/run/t", scope="100%-$x")
    unit = tmp_path / f"{UNIT}.service"
    if kind == "nixos":
        unit.write_text(service_unit(service_of(evaluated)))
    else:
        unit.write_text(home_unit(evaluated.config["systemd"]["user"]["services"][UNIT]))
    more = ["--user"] if kind == "home" else []
    done = subprocess.run(
        [require_program("systemd-analyze"), "--no-pager", *more, "verify", str(unit)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_layout_is_written_from_within_the_sandbox(modules: Modules, tmp_path: Path) -> None:
    """Everything else is read only to the service."""
    service = service_of(evaluate(modules, registry=f"oci:{tmp_path}/cache"))
    assert service["serviceConfig"]["ReadWritePaths"] == [f"{tmp_path}/cache"]
