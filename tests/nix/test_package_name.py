"""Package names, by which the next version of a root supersedes the last."""

import pytest

from nixcache_oci.nix.package_name import package_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hello-2.12.1", "hello"),
        ("hello-2.12.1-dev", "hello"),
        ("python3.11-requests-2.31.0", "python3.11-requests"),
        ("nixos-system-web1-24.05pre", "nixos-system-web1"),
        ("source", "source"),
        ("gcc-wrapper-13.2.0", "gcc-wrapper"),
        ("hook--x", "hook"),
        ("trailing-", "trailing-"),
        ("-1", "-1"),
    ],
)
def test_the_version_begins_at_the_first_dash_that_no_letter_follows(name: str, expected: str) -> None:
    """Nix's own rule; a name never becomes empty, for a root has to have one."""
    assert package_name(name) == expected
