"""The record of a batch."""

from nixcache_oci.cache.timestamp import EPOCH
from nixcache_oci.queue.batch_record import make_batch_record
from tests.publisher.made_store import made_info, made_path


def test_roots_are_what_nothing_else_refers_to() -> None:
    """All that the batch lists is kept by them; a path's reference to itself makes it no less a root."""
    listed = [
        made_info("lib-1.0"),
        made_info("tool-2.1", references=["lib-1.0", "tool-2.1"]),
        made_info("alone-3"),
    ]
    record = make_batch_record(listed, "queue/host", "run-1", EPOCH)
    assert record is not None
    assert record.roots == (("tool", made_path("tool-2.1")), ("alone", made_path("alone-3")))
    assert record.is_partial


def test_a_batch_of_upstream_paths_has_no_record() -> None:
    """There is nothing to keep."""
    assert make_batch_record([], "queue/host", "run-1", EPOCH) is None
