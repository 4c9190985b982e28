"""The verb ``keygen``: a key pair to sign a cache with, in the form that Nix knows."""

import argparse
import os
from pathlib import Path

from nixcache_oci.cli.console import say
from nixcache_oci.cli.verb import DONE
from nixcache_oci.errors import Error, FormatError, UsageError
from nixcache_oci.nix.signature import SecretKey
from nixcache_oci.settings.values import Values

_SECRET_MODE = 0o600
_PUBLIC_MODE = 0o644

DESCRIPTION = (
    "Make a key pair: NAME.sec, which signs and must stay secret, and NAME.pub, which clients trust. "
    "A file that exists is never overwritten."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument(
        "name", metavar="NAME", help="name of the key, unique among all caches, such as my-cache-1"
    )
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, default=Path(), help="where the files go; the current folder"
    )


def run(values: Values) -> int:
    """Make the files, and print the public key."""
    name: str = values.flags.name
    try:
        key = SecretKey.generate(name)
    except FormatError as error:
        raise UsageError(str(error)) from None
    secret, public = (values.flags.directory / f"{name}.{end}" for end in ("sec", "pub"))
    _create(secret, key.render(), _SECRET_MODE)
    try:
        _create(public, f"{key.public_key}\n", _PUBLIC_MODE)
    except BaseException:
        secret.unlink()
        raise
    say(str(key.public_key))
    return DONE


def _create(path: Path, content: str, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise Error(f"{path} exists and is not overwritten; move it away, or choose another name") from None
    except OSError as error:
        raise Error(f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, mode)  # whatever the umask made of it
            file.write(content)
    except BaseException as error:
        path.unlink()  # half a key is none, and would be in the way of the next
        if isinstance(error, OSError):
            raise Error(f"{path}: {error.strerror}") from None
        raise
