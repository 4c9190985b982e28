"""The settings that Nix works with, as real Nix tells them, and whose wish counts."""

import os
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.nix_settings import (
    NixSettings,
    current_user,
    read_settings,
    system_environment,
    uses_daemon,
)
from nixcache_oci.errors import FormatError, StoreError

URL = "http://127.0.0.1:37515"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Settings of the machine, of the user, and of this shell."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nix.conf").write_text(
        "substituters = http://system\ntrusted-users = root bob\nfallback = true\n"
    )
    (tmp_path / "home/.config/nix").mkdir(parents=True)
    (tmp_path / "home/.config/nix/nix.conf").write_text(f"extra-substituters = {URL}\n")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "NIX_CONF_DIR": str(tmp_path / "etc"),
        "NIX_CONFIG": "extra-substituters = http://shell\nrequire-sigs = false",
    }


@pytest.mark.needs("nix")
async def test_the_user_and_the_system(environment: dict[str, str]) -> None:
    """A daemon knows the machine's settings alone, and says so itself."""
    own = await read_settings(Nix(environment, print))
    system = await read_settings(Nix(system_environment(environment), print))
    assert own.substituters == ("http://system", URL, "http://shell")
    assert system.substituters == ("http://system",)
    assert (own.require_sigs, system.require_sigs) == (False, True)
    assert own.fallback
    assert own.trusted_users == ("root", "bob")
    assert own.store == "auto"


@pytest.mark.needs("nix")
async def test_a_line_that_nix_refuses(environment: dict[str, str]) -> None:
    """Its own words."""
    (Path(environment["NIX_CONF_DIR"]) / "nix.conf").write_text("fallback=true\n")
    with pytest.raises(StoreError):
        await read_settings(Nix(environment, print))


def test_what_is_missing() -> None:
    """Named, and not taken for something."""
    with pytest.raises(FormatError, match="substituters"):
        NixSettings.parse({})


def test_whether_a_daemon_works(tmp_path: Path) -> None:
    """By the store that is named; else where there is a socket, and the store is not ours to write."""
    environment = {"NIX_STATE_DIR": str(tmp_path / "gone")}
    assert uses_daemon("daemon", environment)
    assert uses_daemon("unix:///socket", environment)
    assert not uses_daemon("local", environment)
    assert not uses_daemon("auto", environment)
    assert not uses_daemon("auto", {"NIX_STATE_DIR": str(tmp_path)})
    name, groups = current_user()
    assert name
    assert groups
