"""What the actions' scripts share: what a program gets, what is printed, and where programs come from."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.environment import child_environment
from tests.clients.test_child_environment import HARMLESS, SECRET
from tests.support.github_commands import find_commands
from tests.workflows.documents import TOP

# Where settings are looked for: absolute, or not looked into.
FOLDERS = (
    *("HOME", "NIX_CONF_DIR", "NIX_USER_CONF_FILES", "XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "XDG_DATA_HOME"),
)
COMMON = TOP / "workflows/shell/common.sh"


def run(
    script: str, folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script that has the shared functions, in a folder; its two streams are one."""
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n. {COMMON}\n{script}"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )


def test_scripts_and_program_have_one_list(tmp_path: Path) -> None:
    """What a program may see is written twice, in two languages, and is the same."""
    given = {name: f"value of {name}" for name in (*HARMLESS, *SECRET) if name not in ("PATH", "BASH_ENV")}
    given |= {"LC_ALL": "C", "LC_TIME": "C", "LANG": "C", "PATH": "/usr/bin:/bin", "LD_PRELOAD": ""}
    given |= {name: f"/the/{name}" for name in given if name in FOLDERS}
    ran = run("keep_harmless; printf '%s\\n' \"${kept[@]}\"", tmp_path, given)
    kept = dict(line.split("=", 1) for line in ran.stdout.splitlines())
    assert kept == child_environment(given)


def test_what_we_tell_is_one_command(tmp_path: Path) -> None:
    """Whatever is in it: names of branches, files and keys come from elsewhere."""
    text = "100% a\n::add-mask::x\r##[add-mask]y \x1b]0;T\x07 é \x9b31m \x7f"
    for language in ("C", "C.UTF-8"):
        ran = run('notice "$TEXT"', tmp_path, {"TEXT": text, "LC_ALL": language})
        (line,) = ran.stdout.splitlines()
        assert line == "::notice::100%25 a ::add-mask::x ## [add-mask]y \\x1b]0;T\\x07 é ?31m \\x7f"


def test_what_others_print_is_no_command(tmp_path: Path) -> None:
    """Nor is there a control character in it, on either stream; the status is theirs, and we speak again."""
    script = r"""
      other() {
        printf '::set-output name=a::b\r  ::add-mask::c\nx##[add-mask]d\n' >&2
        printf '\033]0;T\a\302\233é'
        return 3
      }
      guard other || notice "status $?"
      guard true
      guard echo second
    """
    ran = run(script, tmp_path)
    assert find_commands(ran.stdout) == [("notice", "status 3")]
    assert "::set-output name=a::b" in ran.stdout
    assert "é" in ran.stdout
    assert not set(ran.stdout) & set("\x1b\x07\x9b\r")
    words = [line for line in ran.stdout.splitlines() if line.startswith("::stop-commands::")]
    assert len(set(words)) == 2  # what prints nothing needs none


@pytest.mark.parametrize("workspace", ["", "workspace", "link"])
def test_nothing_is_looked_for_in_the_checkout(tmp_path: Path, workspace: str) -> None:
    """Neither by a relative entry of PATH, nor by one that leads there, by a link as well; others stay."""
    checkout = tmp_path / "workspace"
    (checkout / "bin").mkdir(parents=True)
    (tmp_path / "link").symlink_to(checkout)
    (tmp_path / "workspace-tools").mkdir()
    entries = (
        checkout / "bin",
        checkout,
        "bin",
        ".",
        "",
        tmp_path / "link/bin",
        tmp_path / "workspace-tools",
    )
    path = ":".join(map(str, (*entries, "/usr/bin", "/bin")))
    given = {
        "PATH": path,
        "LD_LIBRARY_PATH": path,
        "XDG_CONFIG_DIRS": path,
        "XDG_CONFIG_HOME": str(checkout / "x"),
        "GITHUB_WORKSPACE": str(tmp_path / workspace) if workspace else "",
    }
    folder = tmp_path / "workspace-tools" if workspace else checkout
    script = 'printf "%s\\n" "$PATH" "$LD_LIBRARY_PATH" "$XDG_CONFIG_DIRS" "${XDG_CONFIG_HOME-none}"'
    ran = run(script, folder, given)
    expected = [] if workspace else [str(tmp_path / "workspace-tools")]
    assert ran.stdout.splitlines() == [*[":".join([*expected, "/usr/bin", "/bin"])] * 3, "none"]


def test_an_action_out_of_the_checkout_trusts_it() -> None:
    """What is used by ``./workflows/…`` comes from there itself."""
    ran = run('echo "$PATH"', TOP, {"PATH": f"{TOP}/.venv/bin:/usr/bin", "GITHUB_WORKSPACE": str(TOP)})
    assert ran.stdout == f"{TOP}/.venv/bin:/usr/bin\n"
