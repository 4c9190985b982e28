"""What is printed is text, whoever wrote it."""

import io
import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixcache_oci.cli.console import as_line, complain, say, say_json, show_foreign
from nixcache_oci.cli.github_actions import GithubActions
from tests.support.github_commands import find_commands

EVIL = "a\x1b]0;TITLE\x07\x9b31m\x7f\r::set-output name=x::y\n::add-mask::z ##[add-mask]q"
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Terminal(io.StringIO):
    """Takes what is written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(st.text())
def test_a_line_is_one_line_of_text(text: str) -> None:
    """Whatever is in it: no control character, and nothing that GitHub would obey."""
    line = as_line(text)
    assert line.isprintable()
    assert find_commands(line) == []


def test_both_streams(capsys: pytest.CaptureFixture[str]) -> None:
    """Results and complaints alike; what was meant as several lines is several."""
    say(EVIL, "second")
    complain(EVIL)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 2
    assert len(said.err.splitlines()) == 1
    assert not CONTROLS.search(said.out + said.err)
    assert find_commands(said.out + said.err) == []
    assert r"a\x1b]0;TITLE\x07\x9b31m\x7f\r::set-output" in said.out


def test_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    """It reads back as what it was, and is text until then."""
    say_json({"name": EVIL})
    out = capsys.readouterr().out
    assert not CONTROLS.search(out)
    assert find_commands(out) == []
    assert json.loads(out) == {"name": EVIL}


def test_colours_are_a_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal shows Nix's colours, which end with their line; nothing else passes, and a file has none."""
    line = "\x1b[31;1merror:\x1b[0m \x1b]52;c;cHduZWQ=\x07\x9b2J tab\there"
    show_foreign(line)
    assert capsys.readouterr().err == "error: \\x1b]52;c;cHduZWQ=\\x07\\x9b2J tab\there\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    show_foreign(line)
    show_foreign("plain")
    assert terminal.getvalue() == (
        "\x1b[31;1merror:\x1b[0m \\x1b]52;c;cHduZWQ=\\x07\\x9b2J tab\there\x1b[0m\nplain\n"
    )


@pytest.mark.parametrize("variable", [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_may_want_no_colours(monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str]) -> None:
    """Nix is asked for none, and a build may print some all the same."""
    monkeypatch.setenv(*variable)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    show_foreign("\x1b[31;1merror:\x1b[0m it failed")
    assert terminal.getvalue() == "error: it failed\n"


def test_foreign_lines_give_no_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """GitHub reads no command in them, and ours on either side; each time another word ends them."""
    actions = GithubActions.from_environment({"GITHUB_ACTIONS": "true"})
    assert actions is not None
    log = actions.log
    log.show("::add-mask::a")
    first = capsys.readouterr().err
    word = first.splitlines()[0].removeprefix("::stop-commands::")
    assert len(word) == 32
    # A line that knows the word, as of a build that reads along, does not end them.
    for line in (f"::{word}::", f"  ##[{word}]", f"##[{word.upper()}]", EVIL):
        log.show(line)
    actions.annotate("error", "own")
    log.show("::set-output name=x::y")
    log.resume()
    log.resume()
    text = first + capsys.readouterr().err
    assert find_commands(text) == [("error", "own")]
    assert not CONTROLS.search(text)
    words = re.findall("::stop-commands::(.*)", text)
    assert len(words) == len(set(words)) == 2
    assert text.splitlines()[-1] == f"::{words[-1]}::"
