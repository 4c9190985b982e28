"""The verb ``man``: the manual page, made from the parsers."""

import argparse
from importlib.metadata import version
from typing import Final

from nixcache_oci.cli.completion import make_whole_parser, missing, parsers_of
from nixcache_oci.cli.console import say_generated
from nixcache_oci.cli.main import PROGRAM
from nixcache_oci.cli.verb import DONE
from nixcache_oci.settings.values import Values

_WIDTH: Final = 10_000

DESCRIPTION = "Print the manual page: `nixcache-oci man | man -l -` shows it."


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Describe no arguments."""


def run(_values: Values) -> int:
    """Print the page."""
    try:
        from argparse_manpage.manpage import Manpage  # noqa: PLC0415 -- installed to package this
    except ImportError:
        raise missing("man", "argparse-manpage") from None
    parser = make_whole_parser()
    for one in parsers_of(parser):
        # troff fills the lines; cut here, one could begin like a request to it.
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
