"""What GitHub tells a workflow, and is told by it."""

from pathlib import Path

import pytest

from nixcache_oci.cli.github_actions import MAX_SUMMARY_BYTES, GithubActions

RUN = {
    "GITHUB_ACTIONS": "true",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REPOSITORY": "octocat/hello",
    "GITHUB_SHA": "abc",
    "GITHUB_REF_NAME": "main",
    "GITHUB_RUN_ID": "42",
}


def actions_of(**environment: str) -> GithubActions:
    actions = GithubActions.from_environment({**RUN, **environment})
    assert actions is not None
    return actions


def test_a_run_is_known_by_what_github_sets() -> None:
    """Outside of a workflow there is none; inside, what is not set is None."""
    assert GithubActions.from_environment({"CI": "true"}) is None
    actions = actions_of()
    assert actions.source == "https://github.com/octocat/hello/commit/abc"
    assert (actions.ref_name, actions.run_id, actions.summary) == ("main", "42", None)
    assert actions_of(GITHUB_SHA="").source is None


def test_an_annotation_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a line break nor a percent sign can forge another command."""
    actions_of().annotate("error", "100% wrong\r\n::set-output name=x::y")
    actions_of().annotate("warning", "careful")
    assert capsys.readouterr().err == ("::error::100%25 wrong%0A::set-output name=x::y\n::warning::careful\n")


def test_an_annotation_has_no_terminal_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """What Nix or a registry said may hold anything; only line breaks have a form of their own."""
    actions_of().annotate("warning", "red\x1b[31m\nnext\u2028")
    assert capsys.readouterr().err == "::warning::red\\x1b[31m%0Anext\\u2028\n"


def test_a_summary_is_appended(tmp_path: Path) -> None:
    """Steps before this one may have written some."""
    file = tmp_path / "summary"
    file.write_text("before\n")
    actions_of(GITHUB_STEP_SUMMARY=str(file)).append_summary("after\n")
    assert file.read_text() == "before\nafter\n"


def test_a_long_summary_is_cut(tmp_path: Path) -> None:
    """GitHub shows nothing of one that is over its limit; a letter is not cut in two."""
    file = tmp_path / "summary"
    actions_of(GITHUB_STEP_SUMMARY=str(file)).append_summary("é" * MAX_SUMMARY_BYTES)
    content = file.read_bytes()
    assert MAX_SUMMARY_BYTES - 8 <= len(content) <= MAX_SUMMARY_BYTES
    assert content.decode().endswith("over what GitHub shows.\n")


def test_a_summary_is_cut_between_lines(tmp_path: Path) -> None:
    """Half a row of a table would show as garbage."""
    file = tmp_path / "summary"
    row = "| a | b |\n"
    actions_of(GITHUB_STEP_SUMMARY=str(file)).append_summary(row * (MAX_SUMMARY_BYTES // len(row) + 1))
    *rows, last = file.read_text().splitlines()
    assert set(rows) == {row.strip(), ""}
    assert last.startswith("The rest is left out")


def test_a_summary_that_is_full_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One byte too much, and GitHub would not show what earlier commands of the step wrote either."""
    file = tmp_path / "summary"
    file.write_bytes(b"x" * (MAX_SUMMARY_BYTES - 10))
    actions_of(GITHUB_STEP_SUMMARY=str(file)).append_summary("y" * 100)
    assert file.stat().st_size == MAX_SUMMARY_BYTES - 10
    assert capsys.readouterr().err.startswith("::warning::the step summary is full")
    actions_of(GITHUB_STEP_SUMMARY=str(file)).append_summary("y" * 10)
    assert file.stat().st_size == MAX_SUMMARY_BYTES


def test_a_summary_takes_any_text(tmp_path: Path) -> None:
    """JSON can hold half a letter; a publish that succeeded does not fail by it."""
    file = tmp_path / "summary"
    actions_of(GITHUB_STEP_SUMMARY=str(file)).append_summary("a\udc80b\n")
    assert file.read_text() == "a?b\n"


def test_no_place_for_a_summary_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever looks for the summary learns why there is none."""
    actions_of().append_summary("x")
    assert "::warning::there is no step summary" in capsys.readouterr().err


def test_a_summary_that_cannot_be_written_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The publish itself has succeeded by then."""
    actions_of(GITHUB_STEP_SUMMARY=str(tmp_path)).append_summary("x")
    assert "::warning::the step summary cannot be written" in capsys.readouterr().err
