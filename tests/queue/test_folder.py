"""The queue's folder, beside its events."""

from pathlib import Path

import pytest

from nixcache_oci.queue.folder import QueueFolder, QueueState


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"[]", b'{"no": 1}', b'{"failure": "' + b"x" * 64 * 1024 + b'"}', None]
)
def test_a_state_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    """It is as if nothing were known, however large it is; and what is known next takes its place."""
    folder = QueueFolder(tmp_path)
    if content is not None:
        (tmp_path / "state.json").write_bytes(content)
    assert folder.read_state() == QueueState()
    state = QueueState(failures=2, failure="x")
    folder.write_state(state)
    assert folder.read_state() == state
