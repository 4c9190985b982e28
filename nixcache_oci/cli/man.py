"""The verb ``man``: the manual page, made from the parsers."""

import argparse
from collections.abc import MutableMapping
from importlib.metadata import version
from typing import Final

from nixcache_oci.cli.completion import make_whole_parser, missing, parsers_of
from nixcache_oci.cli.console import say_generated
from nixcache_oci.cli.main import PROGRAM
from nixcache_oci.cli.verb import DONE, SubParsers

_WIDTH: Final = 10_000


def add_parser(subparsers: SubParsers) -> None:
    """Describe the verb's arguments."""
    subparsers.add_parser(
        "man",
        description="Print the manual page: `nixcache-oci man | man -l -` shows it.",
        allow_abbrev=False,
    )


def run(_arguments: argparse.Namespace, _environment: MutableMapping[str, str]) -> int:
    """Print the page."""
    try:
        from argparse_manpage.manpage import Manpage  # noqa: PLC0415 -- installed for whoever packages this
    except ImportError:
        raise missing("man", "argparse-manpage") from None
    parser = make_whole_parser()
    for one in parsers_of(parser):
        # Whoever shows the page fills its lines; cut here, one could begin like a request to troff.
        one.formatter_class = _Wide
    page = Manpage(parser)
    page.source = f"{PROGRAM} {version(PROGRAM)}"
    page.manual = "User Commands"
    page.description = "a Nix binary cache in an OCI registry"
    say_generated(str(page))
    return DONE


class _Wide(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)
