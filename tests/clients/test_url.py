"""Showing a stranger's URL."""

import pytest

from nixcache_oci.clients.http.url import show_url


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:secret@h.example/x?X-Amz-Signature=secret#secret", "'https://h.example/x'"),
        ("//u:secret@h.example", "'//h.example'"),
        ("s3://bucket/x?secret", "'s3://bucket/x'"),
        ("https://a@b:secret@[::1/", "'https://[::1/'"),
        ("nar/x.nar?token=secret", "'nar/x.nar'"),
        ("?secret", "''"),
        ("a\nb", "'a\\nb'"),
        ("x" * 9000, repr("x" * 200)),
    ],
)
def test_nothing_secret_is_shown(text: str, shown: str) -> None:
    """Logs and the status page are read by others: no user, password or signed query, in one short line."""
    assert show_url(text) == shown
