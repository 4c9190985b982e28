"""Names what the tests of hostile input share."""

from tests.hostile.story import blobs_upstream, proxy
from tests.hostile.tally import clients, data

__all__ = ["blobs_upstream", "clients", "data", "proxy"]
