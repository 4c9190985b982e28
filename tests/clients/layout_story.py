"""What tests of layouts tell their stories with."""

import signal
import subprocess
import sys
from pathlib import Path

from nixcache_oci.clients.repository import Repository
from nixcache_oci.oci import media_type
from nixcache_oci.oci.descriptor import EMPTY_CONFIG
from nixcache_oci.oci.digest import Digest
from nixcache_oci.oci.manifest import Manifest

CONTENT = b"content of a blob"
DIGEST = Digest.of(CONTENT)
LARGE = bytes(range(256)) * 5000  # 1.28 MB: several pieces, both when written and when read


def manifest(text: str) -> bytes:
    return Manifest(media_type.SEGMENT, EMPTY_CONFIG, (), {"text": text}).render()


async def push(repository: Repository, tag_or_digest: str, content: bytes) -> Digest:
    return await repository.push_manifest(tag_or_digest, content, media_type.IMAGE_MANIFEST)


def files_of(root: Path) -> set[str]:
    """All files but the lock."""
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)) for path in paths} - {".nixcache-lock"}


_SECONDS = 60
# Kills itself when it asks for the nth time that something reaches the disk: just before a step takes effect.
_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
calls, sync = 0, os.fsync
def kill_or(go_on, *arguments, **named):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return go_on(*arguments, **named)
os.fsync = lambda *arguments: kill_or(sync, *arguments)
"""


def killed_at(step: int, script: str, *arguments: str | Path) -> bool:
    """Tell whether a program whose script sets ``job`` was killed at a step; otherwise it has ended well."""
    command = [sys.executable, "-c", f"{_KILLED}\n{script}\nasyncio.run(job)", str(step), *arguments]
    process = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    assert process.returncode in (0, -signal.SIGKILL), process.stderr
    return process.returncode != 0


def start(script: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE)
