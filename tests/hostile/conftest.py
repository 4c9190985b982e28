"""Names what the tests of hostile input share."""

from tests.hostile.story import blobs_upstream, clients, data, proxy

__all__ = ["blobs_upstream", "clients", "data", "proxy"]
