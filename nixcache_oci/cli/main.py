"""The program ``nixcache-oci``: finds the verb, runs it, turns errors into one line and an exit status.

Only the module of the verb that was asked for is imported: HTTP and cryptography take longer to import than
``--version`` takes to answer.
"""

import argparse
import errno
import importlib
import keyword
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final, NoReturn, cast

from nixcache_oci.cli.console import complain, say
from nixcache_oci.cli.interrupt import Interrupted, handling_signals
from nixcache_oci.cli.standard_streams import StandardStreams
from nixcache_oci.cli.verb import DONE, FAILED, WRONG_USAGE, Parser, Verb, settle_verbosity
from nixcache_oci.clients.local_store.environment import hide_environment
from nixcache_oci.errors import Error, UsageError

PROGRAM: Final = "nixcache-oci"

# Each is a module of this package: see the protocol Verb.
VERBS: Final = {
    "proxy": "serve the cache to Nix on this machine",
    "use": "point Nix on this machine at the proxy",
    "login": "let Nix on this machine upload to a proxy",
    "init": "set up GitHub workflows that publish a cache",
    "publish": "build a flake, and publish what was built",
    "push": "publish store paths",
    "queue": "publish store paths as they are built, in batches",
    "watch-exec": "run a command, and publish what it builds",
    "hook": "let Nix queue what it builds",
    "list": "list what a cache holds, or the roots and pins that keep it",
    "search": "find store paths of a cache by name",
    "info": "show what a cache knows of a store path",
    "pin": "keep store paths under a name",
    "gc": "delete what no root or pin reaches",
    "verify": "check that everything a cache lists is present and intact; repair it",
    "export": "write a cache as plain files for any web server",
    "import": "bring in an existing binary cache, unchanged",
    "mirror": "copy a whole cache to another repository",
    "doctor": "diagnose settings, permissions, keys, Nix and the proxy",
    "keygen": "make a key pair for signing a cache",
    "completion": "print a shell completion script",
    "man": "print the manual page",
    "demo": "publish a sample to a throw-away cache, and serve it",
}

# Their output is not their result.
_SERVING: Final = frozenset({"proxy", "demo"})

# Builds beside them may read the environment that this process was started with; a job's proxy is beside all.
_BESIDE_BUILDS: Final = frozenset({"proxy", "publish", "push", "queue", "watch-exec"})

PIPE_CLOSED: Final = 141
"""As shells report a program that SIGPIPE ended."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, by default that of this process.

    Returns:
        the exit status: 0 done, 1 failed, 2 wrong usage, 130 ended by Ctrl-C, 143 by SIGTERM, 141 by a
        closed pipe.
    """
    streams = StandardStreams()
    is_own = argv is None
    argv = sys.argv[1:] if argv is None else argv
    try:
        with handling_signals(_interrupt):
            status = _run(argv, None if is_own else os.environ)
            # Here, and not at the interpreter's end, a closed pipe can still be handled.
            loss = streams.find_loss()
            if loss is not None and _find_verb(argv) not in _SERVING:
                status = _fail(loss, status or FAILED)
    except Interrupted as error:
        complain(f"{PROGRAM}: {error}")
        return error.status
    except BrokenPipeError:
        # As in `nixcache-oci list | head`. What is still buffered would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _interrupt(number: int) -> NoReturn:
    raise Interrupted(number)


def _run(argv: Sequence[str], environment: MutableMapping[str, str] | None) -> int:
    """Run a command; without an environment, in that of this process, which is all ours."""
    try:
        if environment is None:
            environment = hide_environment(os.environ) if _find_verb(argv) in _BESIDE_BUILDS else os.environ
        return _run_verb(argv, environment)
    except UsageError as error:
        return _fail(str(error), WRONG_USAGE)
    except Error as error:
        return _fail(str(error), FAILED)
    except BrokenPipeError:
        raise
    except OSError as error:
        logging.getLogger(__name__).debug("unexpected", exc_info=error)
        return _fail(_describe(error), FAILED)


def _describe(error: OSError) -> str:
    """Describe in one line what the system refused, and for which file."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    reason = error.strerror or str(error) or type(error).__name__
    text = f"{' and '.join(names)}: {reason}" if names else reason
    if error.errno in _FULL:
        text += "; free some room, or name other folders by TMPDIR and NIXCACHE_INDEX_DIR"
    return text


def _run_verb(argv: Sequence[str], environment: MutableMapping[str, str]) -> int:
    from nixcache_oci.settings.values import Values  # noqa: PLC0415 -- a start without a verb needs none

    name = _find_verb(argv)
    verb = load_verb(name) if name in VERBS else None
    try:
        arguments = make_parser({name: verb} if verb is not None else {}).parse_args(argv)
    except SystemExit as leaving:
        # argparse has said what is wrong, or has shown help or version.
        return leaving.code if isinstance(leaving.code, int) else DONE
    if verb is None:
        raise AssertionError("argparse requires a verb, and takes none but ours")
    settle_verbosity(arguments, environment, logs_by_itself=name == "proxy")
    return verb.run(Values(environment, arguments))


def _find_verb(argv: Sequence[str]) -> str:
    """Find the verb: the flags before it have no values."""
    return next((word for word in argv if not word.startswith("-")), "")


def load_verb(name: str) -> Verb:
    """Import the module of a verb."""
    # `import` is a word of Python's, which no module can be named after.
    module = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    return cast("Verb", importlib.import_module(f"nixcache_oci.cli.{module}"))


def make_parser(verbs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """Describe the command line: of verbs that are not given, only the summary."""
    parser = Parser(
        prog=PROGRAM,
        description="A Nix binary cache that is kept in an OCI registry.",
        epilog=f"`{PROGRAM} VERB --help` tells more about one.",
    )
    parser.add_argument("--version", action=_VersionAction, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        if verb := verbs.get(name):
            verb.add_arguments(subparsers.add_parser(name, help=summary, description=verb.DESCRIPTION))
        else:
            subparsers.add_parser(name, help=summary, add_help=False)  # never used: flags would cost time
    return parser


def _fail(error: str, status: int) -> int:
    complain(f"{PROGRAM}: error: {error}")
    return status


class _VersionAction(argparse.Action):
    """Looks the version up only when asked, unlike argparse's own."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        del namespace, values, option_string
        from importlib.metadata import version  # noqa: PLC0415 -- a third of the time that a start takes

        say(f"{PROGRAM} {version(PROGRAM)}")
        parser.exit(DONE)
