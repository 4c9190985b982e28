"""The summary beside a workflow's run."""

from dataclasses import replace

from nixcache_oci.cli.publish_report import OutputRow, PublishSummary, PushedRow, render_summary

PLAN = "2 paths: 1 upstream, 0 cached, 1 to push (1.0 KiB)"
OUTPUTS = (OutputRow("packages.x.good", ("a-one", "b-two")), OutputRow("packages.x.bad", (), "why"))
PUSHED = (PushedRow("a-one", 1024, 512), PushedRow("b-two", 2048, 600))
SUMMARY = PublishSummary("ghcr.io/o/n/nix-cache", PLAN, OUTPUTS, PUSHED, 4.2, ("k-1:AAAA",))


def test_a_summary_tells_outputs_paths_sizes_and_times() -> None:
    """What a reader of the run's page wants to know, the largest path first."""
    text = render_summary(SUMMARY)
    assert "## Published to ghcr.io/o/n/nix-cache" in text
    assert "Pushed 2 paths, 3.0 KiB, 1.1 KiB compressed, in 4.2 s." in text
    assert "| packages.x.good | ✓ | a-one<br>b-two |" in text
    assert "| packages.x.bad | ✗ | why |" in text
    assert text.index("| b-two | 2.0 KiB | 600 B |") < text.index("| a-one | 1.0 KiB | 512 B |")
    assert "\n```\nextra-trusted-public-keys = k-1:AAAA\n```\n" in text


def test_names_cannot_break_the_table() -> None:
    """Outputs are named by whoever wrote the flake, and reasons by Nix."""
    evil = OutputRow("a|b`c<script>\n| x", (), "one\ntwo | three")
    text = render_summary(replace(SUMMARY, outputs=[evil], pushed=[]))
    row = next(line for line in text.splitlines() if "script" in line)
    assert "<script>" not in row
    assert row.replace("\\|", "").count("|") == 4


def test_hidden_characters_are_shown() -> None:
    """Every kind of line break would end a row, and what cannot be seen can mislead."""
    odd = OutputRow("a\x1b[31m\u2028b\x85c\u202ed", ())
    text = render_summary(replace(SUMMARY, outputs=[odd]))
    assert "a\\\\x1b\\[31m b c\\\\u202ed" in text


def test_a_key_cannot_end_its_block() -> None:
    """A key's name is almost any text."""
    text = render_summary(replace(SUMMARY, public_keys=["```:AAAA"]))
    assert [line for line in text.splitlines() if line.startswith("```")] == ["```", "```"]


def test_many_paths_are_cut() -> None:
    """A page has no room for ten thousand rows."""
    rows = [PushedRow(f"path-{number}", number, number) for number in range(250)]
    text = render_summary(replace(SUMMARY, pushed=rows))
    assert text.count("| path-") == 100
    assert "and 150 more" in text


def test_nothing_done_is_a_short_summary() -> None:
    """No empty tables."""
    text = render_summary(replace(SUMMARY, outputs=[], pushed=[], public_keys=[]))
    assert "|" not in text
