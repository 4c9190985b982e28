"""Completion and the manual page are made from the parsers: what these know, both tell."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nixcache_oci.cli.completion import SHELLS, make_whole_parser, parsers_of
from nixcache_oci.cli.main import PROGRAM, VERBS, main
from nixcache_oci.cli.verb import DONE, FAILED

# What a shell does when Tab is pressed behind these words.
_PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
function=$(complete -p "$1"); function=${function#*-F }; function=${function%% *}
"$function" "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def bash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["completion", "bash"]) == DONE
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    return script


def press_tab(script: Path, *words: str) -> set[str]:
    done = subprocess.run(
        ["bash", "-euc", _PRESS_TAB, "bash", script, PROGRAM, *words],
        cwd=script.parent,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return set(done.stdout.split())


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}


def test_bash_completes_verbs_actions_flags_values_and_files(bash: Path) -> None:
    """Each verb; of a verb or action, what begins with what was typed; files where a file is meant."""
    assert press_tab(bash, "") >= VERBS.keys()
    assert press_tab(bash, "pu") == {"publish", "push"}
    assert press_tab(bash, "pin", "") >= {"create", "list", "remove"}
    assert press_tab(bash, "pin", "create", "--keep-") == {
        "--keep-days",
        "--keep-revisions",
        "--keep-forever",
    }
    assert press_tab(bash, "push", "--compression", "") == {"zstd", "xz", "none"}
    (bash.parent / "result").touch()
    assert press_tab(bash, "push", "./res") == {"./result"}
    assert press_tab(bash, "publish", "--signing-key-file", "res") == {"result"}
    for parser in parsers_of(make_whole_parser()):
        words = parser.prog.split()[1:]
        assert press_tab(bash, *words, "--") == flags_of(parser), words


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_knows_every_verb(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With its summary, where the shell shows one."""
    assert main(["completion", shell]) == DONE
    script = capsys.readouterr().out
    for name, summary in VERBS.items():
        assert re.search(rf"\b{name}\b", script)
        assert shell == "bash" or summary in script.replace("\\'", "'")


def test_the_page_tells_every_flag(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same on each terminal, and no text is taken for a request to troff."""
    pages = []
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["man"]) == DONE
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1]
    requests = {line.split()[0] for line in pages[0].splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".B", ".TP", ".SS"}
    text = pages[0].replace("\\-", "-")
    for parser in parsers_of(make_whole_parser()):
        assert parser.prog in text
        assert {flag for flag in flags_of(parser) - {"--help"} if flag not in text} == set()


@pytest.mark.parametrize(
    ("words", "module"), [(["completion", "bash"], "shtab"), (["man"], "argparse_manpage.manpage")]
)
def test_what_makes_them_may_be_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], module: str
) -> None:
    """One line says what installs it; no other verb needs it."""
    monkeypatch.setitem(sys.modules, module, None)
    assert main(words) == FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(f"is missing; '{PROGRAM}[completion]' installs it\n")
    assert said.err.count("\n") == 1
