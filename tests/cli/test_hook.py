"""The verb ``hook``."""

from pathlib import Path

import pytest

from nixcache_oci.cli.main import main


def test_it_writes_a_script_and_prints_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line is all of standard output; installing again replaces the script; `show` prints the same."""
    queue = tmp_path / "queue"
    for _ in range(2):
        assert main(["hook", "install", "--queue-dir", str(queue)]) == 0
        line = capsys.readouterr().out
        assert line == f"post-build-hook = {queue}/post-build-hook\n"
    script = queue / "post-build-hook"
    assert script.stat().st_mode & 0o111
    assert main(["hook", "show", "--queue-dir", str(queue)]) == 0
    assert capsys.readouterr().out == script.read_text()


def test_a_name_that_nix_conf_cannot_hold_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nix would run something else, or nothing."""
    assert main(["hook", "install", "--queue-dir", str(tmp_path / "a b")]) == 2
    assert "NIXCACHE_QUEUE_DIR" in capsys.readouterr().err
