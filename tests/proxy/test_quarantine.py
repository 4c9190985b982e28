"""Quarantine: what turned out wrong is 404 for a while."""

from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.verified import QUARANTINE_SECONDS, Quarantine


def test_it_ends() -> None:
    """Ten minutes, counted from the last time that the blob was wrong; and no other blob is concerned."""
    now = 0.0
    quarantine = Quarantine(lambda: now)
    blob = Digest.of(b"wrong")
    quarantine.add(blob)
    assert blob in quarantine
    assert Digest.of(b"other") not in quarantine
    now = QUARANTINE_SECONDS - 1
    assert blob in quarantine
    quarantine.add(blob)
    now = QUARANTINE_SECONDS + 1
    assert blob in quarantine
    now = 2 * QUARANTINE_SECONDS
    assert blob not in quarantine


def test_it_is_bounded() -> None:
    """A registry that sends nothing right must not fill the memory."""
    quarantine = Quarantine(lambda: 0.0)
    blobs = [Digest.of(str(number).encode()) for number in range(5000)]
    for blob in blobs:
        quarantine.add(blob)
    assert blobs[-1] in quarantine
    assert sum(blob in quarantine for blob in blobs) == 1024
