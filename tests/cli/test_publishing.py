"""What everything that publishes is told."""

import argparse

import pytest

from nixcache_oci.cli.main import load_verb
from nixcache_oci.cli.publishing import choose_on_line, publish_settings
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.keyring import Keyring
from nixcache_oci.clients.local_store.environment import child_environment
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.settings.values import Values


async def test_our_secrets_reach_the_registry_and_no_program() -> None:
    """What CI hands out for us is not for Nix, nor for builders and hooks that it starts."""
    parser = argparse.ArgumentParser()
    parser.set_defaults(quiet=False)
    load_verb("push").add_arguments(parser)
    secrets = {"NIX_SIGNING_KEY": SecretKey.generate("a-1").render(), "NIXCACHE_TOKEN": "me:secret-word"}
    environment = {
        "PATH": "/bin",
        "HOME": "/nowhere",
        "NIXCACHE_REPO": "o/n",
        "NIXCACHE_REGISTRY": "registry.example",
        "GITHUB_TOKEN": "of GitHub alone",
        **secrets,
    }
    settings = publish_settings(Values(environment, parser.parse_args(["/nix/store/x"])))
    assert not secrets.keys() & child_environment(settings.nix_environment).keys()
    found = await Keyring("registry.example", "o/n/nix-cache", environment).find()
    assert found == Credentials("me", "secret-word", "NIXCACHE_TOKEN")


@pytest.mark.parametrize(
    ("flags", "environment", "is_merging"),
    [
        ([], {}, True),
        (["--no-merge"], {}, False),
        (["--no-merge"], {"NIXCACHE_MERGE": "yes"}, False),
        ([], {"NIXCACHE_MERGE": "no"}, False),
    ],
)
def test_merging_can_be_left_to_gc(
    flags: list[str], environment: dict[str, str], *, is_merging: bool
) -> None:
    """By a flag or a setting; the flag wins."""
    parser = argparse.ArgumentParser()
    parser.set_defaults(quiet=False)
    load_verb("push").add_arguments(parser)
    named = {"HOME": "/nowhere", "NIXCACHE_REPO": "o/n", "NIXCACHE_REGISTRY": "registry.example"}
    settings = publish_settings(Values({**named, **environment}, parser.parse_args([*flags, "/nix/store/x"])))
    assert settings.options.is_merging is is_merging


def test_quiet_shows_what_is_wrong_with_a_build(capsys: pytest.CaptureFixture[str]) -> None:
    """With `-q`, Nix says nothing of what it builds and copies, and still why it does not."""
    for is_quiet in (True, False):
        show = choose_on_line(None, is_quiet=is_quiet)
        for line in ("building '/nix/store/x.drv'...", "\x1b[31;1merror:\x1b[0m no space", "warning: dirty"):
            show(line)
    assert capsys.readouterr().err.splitlines() == [
        *("error: no space", "warning: dirty", "building '/nix/store/x.drv'...", "error: no space"),
        "warning: dirty",
    ]


@pytest.mark.parametrize("is_quiet", [True, False])
def test_a_warning_of_nix_is_shown_once(capsys: pytest.CaptureFixture[str], *, is_quiet: bool) -> None:
    """A dirty tree is one warning, and not one for each question that Nix is asked; each error is shown."""
    show = choose_on_line(None, is_quiet=is_quiet)
    lines = ["\x1b[35;1mwarning:\x1b[0m Git tree '/x' is dirty", "error: no space", "warning: another"]
    for line in lines * 3:
        show(line)
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        "warning: Git tree '/x' is dirty",
        "error: no space",
        "warning: another",
        *["error: no space"] * 2,
    ]
