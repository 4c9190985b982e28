"""The verb ``queue``, as far as it needs no Nix."""

import json
import re
from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.queue.folder import QueueFolder
from tests.publisher.made_store import made_path

DOCUMENT = Path(__file__).parents[2] / "docs/json.md"


def test_status_counts_what_waits_and_documents_its_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also before there is a folder, and while another process publishes; looking makes no folder."""
    folder = QueueFolder(tmp_path / "queue")
    status = ["queue", "status", "--json", "--queue-dir", str(folder.path)]
    assert main(status) == 0
    found = json.loads(capsys.readouterr().out)
    section = DOCUMENT.read_text(encoding="utf-8").partition("## queue status\n")[2].partition("\n## ")[0]
    assert list(found) == re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert (found["isRunning"], found["events"], folder.path.exists()) == (False, 0, False)
    folder.spool.make()
    folder.spool.add([made_path("one"), made_path("other")])
    with folder.locked(0) as is_ours:
        assert is_ours
        assert main(status) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["isRunning"], found["events"], found["paths"]) == (True, 1, 2)


def test_a_state_that_cannot_be_read_is_no_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It only tells how publishing went; nothing depends on it."""
    for content in ("", "[]", '{"other": 1}', "x" * 100_000):
        (tmp_path / "state.json").write_text(content)
        assert main(["queue", "status", "--queue-dir", str(tmp_path)]) == 0
    assert "last published" not in capsys.readouterr().out
