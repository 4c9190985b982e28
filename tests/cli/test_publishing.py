"""What everything that publishes is told."""

import argparse

from nixcache_oci.cli.main import load_verb
from nixcache_oci.cli.publishing import publish_settings
from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.keyring import Keyring
from nixcache_oci.clients.local_store.child_environment import child_environment
from nixcache_oci.nix.signature import SecretKey


async def test_our_secrets_reach_the_registry_and_no_program() -> None:
    """What CI hands out for us is not for Nix, nor for builders and hooks that it starts."""
    parser = argparse.ArgumentParser()
    load_verb("push").add_parser(parser.add_subparsers())
    secrets = {"NIX_SIGNING_KEY": SecretKey.generate("a-1").render(), "NIXCACHE_TOKEN": "me:secret-word"}
    environment = {
        "PATH": "/bin",
        "HOME": "/nowhere",
        "NIXCACHE_REPO": "o/n",
        "NIXCACHE_REGISTRY": "registry.example",
        "GITHUB_TOKEN": "of GitHub alone",
        **secrets,
    }
    settings = publish_settings(parser.parse_args(["push", "/nix/store/x"]), environment)
    assert not secrets.keys() & child_environment(settings.nix_environment).keys()
    found = await Keyring("registry.example", "o/n/nix-cache", settings.environment).find()
    assert found == Credentials("me", "secret-word", "NIXCACHE_TOKEN")
