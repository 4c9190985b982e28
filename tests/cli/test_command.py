"""Commands in remedies: pasted as they are, they do what the run that printed them would have done."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nixcache_oci.cli.command import complete_commands
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.settings.variables import ALL_VARIABLES
from tests.support.proxy import ProxyProcess

BIN = Path(sys.executable).parent
KEY = SecretKey.generate("k-1").public_key


def values(*flags: str, **environment: str) -> Values:
    """What a run was told by flags and by its environment, with our program in PATH."""
    parser = argparse.ArgumentParser()
    add_flags(parser, ALL_VARIABLES)
    return Values({"PATH": str(BIN), **environment}, parser.parse_args(flags))


@pytest.mark.parametrize(
    ("remedy", "completed"),
    [
        ("nothing of ours", "nothing of ours"),
        ("run: nixcache-oci use --apply", "run: nixcache-oci use --apply --repo o/n --port 1"),
        (
            "nixcache-oci use --apply --public-key NAME:BASE64",
            "nixcache-oci use --apply --repo o/n --port 1 --public-key NAME:BASE64",
        ),
        ("nixcache-oci proxy; or else", "nixcache-oci proxy --repo o/n --port 1; or else"),
        ("nixcache-oci verify", "nixcache-oci verify --repo o/n"),
        ("nixcache-oci keygen NAME", "nixcache-oci keygen NAME"),
    ],
)
def test_flags_of_this_run(remedy: str, completed: str) -> None:
    """Each verb gets those that it has; what the environment says, it says to the next command as well."""
    told = values("--repo", "o/n", "--port", "1", NIXCACHE_IMAGE="i")
    assert complete_commands(remedy, told) == completed


def test_what_root_lacks() -> None:
    """Root has neither this environment nor this PATH; a secret variable has no flag."""
    told = values("--port", "1", NIXCACHE_IMAGE="my image", GITHUB_TOKEN="hunter2")
    completed = complete_commands("as root: nixcache-oci use --apply", told)
    assert completed == f"as root: {BIN}/nixcache-oci use --apply --image 'my image' --port 1"


def test_passwords_are_left_out() -> None:
    """A remedy is shown to others more often than a command line is."""
    told = values("--upstream", "https://a.example", "--upstream", "https://user:hunter2@b.example/x")
    completed = complete_commands("nixcache-oci proxy", told)
    assert "--upstream 'https://a.example https://***@b.example/x'" in completed
    assert "hunter2" not in completed


def test_a_program_that_is_not_in_path(tmp_path: Path) -> None:
    """Then its path is printed, as a shell reads it; another program of this name is not ours."""
    told = values(PATH=str(tmp_path))
    assert complete_commands("nixcache-oci proxy", told) == f"{BIN}/nixcache-oci proxy"
    (tmp_path / "nixcache-oci").write_text("#!/bin/sh\n")
    (tmp_path / "nixcache-oci").chmod(0o755)
    assert complete_commands("nixcache-oci proxy", told) == f"{BIN}/nixcache-oci proxy"


def diagnose(environment: dict[str, str], flags: list[str]) -> dict[str, tuple[str, str]]:
    """Level and remedy of each check, by the real program."""
    done = subprocess.run(
        [BIN / "nixcache-oci", "doctor", "--client", "--json", *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return {one["check"]: (one["level"], one["remedy"]) for one in json.loads(done.stdout)["checks"]}


@pytest.mark.needs("nix")
def test_a_machine_is_mended_by_what_doctor_prints(tmp_path: Path) -> None:
    """From a machine where nothing is set up to one that is well, by pasting remedies; only flags tell."""
    with ProxyProcess(tmp_path / "found", NIXCACHE_REGISTRY=f"oci:{tmp_path}/none") as found:
        port = found.url.rpartition(":")[2]  # free again in a moment
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "NIX_CONF_DIR": str(tmp_path / "etc"),
        "NIX_REMOTE": f"local?root={tmp_path}/store",
    }
    folder = tmp_path / "my cache"
    folder.mkdir()
    flags = ["--port", port, "--registry", f"oci:{folder}", "--public-keys", str(KEY), "--upstream", ""]
    flags += ["--index-dir", str(tmp_path / "in dex")]
    before = diagnose(environment, flags)
    assert before["proxy"][0] == "error"
    serve = re.search(r"\S+ proxy [^;]+", before["proxy"][1])
    assert serve is not None
    with subprocess.Popen(
        ["/bin/sh", "-c", f"exec {serve[0]}"], env=environment, stdout=subprocess.PIPE, text=True
    ) as proxy:
        try:
            assert proxy.stdout is not None
            assert proxy.stdout.readline()
            served = diagnose(environment, flags)
            assert (served["proxy"][0], served["proxy: cache"][0]) == ("good", "good")
            use = served["nix.conf: substituters"][1].removeprefix("run: ")
            assert shlex.split(use)[1] == "use"
            subprocess.run(["/bin/sh", "-c", use], env=environment, check=True, timeout=60)
            after = diagnose(environment, flags)
        finally:
            proxy.kill()
    assert {name: level for name, (level, _) in after.items() if name.startswith("nix.conf")} == {
        "nix.conf: substituters": "good",
        "nix.conf: trusted-public-keys": "good",
        "nix.conf: fallback": "good",
    }
