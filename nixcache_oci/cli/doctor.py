"""The verb ``doctor``: what is set, allowed and running here, and what to do about what is not."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Final, TextIO

from rich.console import Console
from rich.text import Text

from nixcache_oci.cli.command import complete_commands
from nixcache_oci.cli.compose import run_async
from nixcache_oci.cli.console import say_json
from nixcache_oci.cli.doctor_checks import VARIABLES, Doctor, Roles, try_get
from nixcache_oci.cli.log import escape_unprintable, set_up_logging
from nixcache_oci.cli.progress import showing
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.maintenance.checks.finding import Finding, Level, has_error
from nixcache_oci.settings import variables
from nixcache_oci.settings.values import Values, add_flags
from nixcache_oci.wording import counted

_MARKS: Final = {Level.GOOD: "✓", Level.WARNING: "!", Level.ERROR: "✗", Level.SKIPPED: "-"}
_ASCII_MARKS: Final = {Level.GOOD: "+", Level.WARNING: "!", Level.ERROR: "x", Level.SKIPPED: "-"}
_STYLES: Final = {Level.GOOD: "green", Level.WARNING: "yellow", Level.ERROR: "bold red", Level.SKIPPED: "dim"}

DESCRIPTION = (
    "Check settings, network, token, rights, index, keys, Nix and proxy, and say what to do. Exit "
    "status 1 if something is wrong. With a signing key set, the machine is checked as a publisher, "
    "otherwise as a client."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's arguments."""
    parser.add_argument(
        "--publisher",
        action="store_true",
        help="check what publishing needs; except at GitHub, by writing something and deleting it",
    )
    parser.add_argument("--client", action="store_true", help="check Nix and the proxy of this machine")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_flags(parser, VARIABLES)


def run(values: Values) -> int:
    """Check, and tell."""
    level = logging.ERROR  # warnings would repeat findings
    if values.is_given(variables.LOG_LEVEL):
        level = try_get(values, variables.LOG_LEVEL, level)
    set_up_logging(level, values.environment, sys.stderr)
    roles = _find_roles(values)
    configured = try_get(values, variables.PUBLIC_KEYS, ())
    with showing(None, is_quiet=values.flags.quiet) as progress, progress.stage("checking", "check") as stage:
        found = run_async(Doctor(values, roles, configured).examine(stage))
    findings = [replace(one, remedy=complete_commands(one.remedy, values)) for one in found]
    if values.flags.json:
        say_json(
            {
                "publisher": roles.is_publisher,
                "client": roles.is_client,
                "healthy": not has_error(findings),
                "checks": [asdict(finding) for finding in findings],
            }
        )
    else:
        print_findings(roles.reason, findings, sys.stdout)
    return FAILED if has_error(findings) else DONE


def print_findings(head: str, findings: Sequence[Finding], stream: TextIO) -> None:
    """Write a line for each finding, another for its remedy, and one that counts them.

    On a terminal the mark has a colour, unless NO_COLOR or TERM=dumb says otherwise.
    """
    marks = _MARKS if _can_show("".join(_MARKS.values()), stream) else _ASCII_MARKS
    console = Console(file=stream, force_jupyter=False, highlight=False, soft_wrap=True)

    def show(text: str, mark: str = "", style: str = "") -> None:
        line = text if _can_show(text, stream) else ascii(text)[1:-1]
        console.print(Text.assemble((mark, style), line))

    show(head)
    for finding in findings:
        text = f" {finding.check}: {escape_unprintable(finding.text)}"
        show(text, marks[finding.level], _STYLES[finding.level])
        if finding.remedy:
            show(f"    {escape_unprintable(finding.remedy)}")
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    show(f"{counted(count[Level.ERROR], 'error')}, {counted(count[Level.WARNING], 'warning')}")


def _can_show(text: str, stream: TextIO) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _find_roles(values: Values) -> Roles:
    arguments = values.flags
    if arguments.publisher or arguments.client:
        words = [word for word in ("publisher", "client") if getattr(arguments, word)]
        return Roles(arguments.publisher, arguments.client, f"Checked as {' and '.join(words)}.")
    is_publisher = values.is_given(variables.SIGNING_KEY_FILE) or values.is_given(variables.SIGNING_KEY)
    reason = "client, as no signing key is set; --publisher checks what publishing needs."
    if is_publisher:
        reason = "publisher, as a signing key is set; --client checks Nix and the proxy here."
    return Roles(is_publisher, not is_publisher, f"Checked as {reason}")
