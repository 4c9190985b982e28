import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from nixcache_oci.cli.main import VERBS, main
from nixcache_oci.errors import Error, RegistryError, UsageError
from nixcache_oci.settings.values import Values
from nixcache_oci.settings.variables import LOG_LEVEL, PROXY_VARIABLES, REPOSITORY_VARIABLES
from tests.cli.cache_story import write_empty_cache

_NO_REPOSITORY = (
    "NIXCACHE_REGISTRY names a registry, but not which repository in it: "
    "set NIXCACHE_REPO or --repo to owner/name"
)

# Takes the place of a verb in a process of its own: the rest is the real program.
_WITH_VERB = textwrap.dedent("""
    import sys, time, types
    {before}
    from nixcache_oci.cli.main import main

    def run(values):
        {body}

    verb = types.ModuleType("nixcache_oci.cli.demo")
    verb.run = run
    verb.DESCRIPTION = ""
    verb.add_arguments = lambda parser: None
    sys.modules[verb.__name__] = verb
    sys.exit(main(["demo"]))
""")


def _nixcache_oci(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nixcache_oci", *arguments],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("NIXCACHE_")},
            "COLUMNS": "1000",
            **environment,
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )


def _start_with_verb(body: str, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WITH_VERB.format(body=body, before=before)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception | int], None]:
    """Let the verb ``demo`` end in the given way."""

    def replace(end: Exception | int) -> None:
        def run(_values: object) -> int:
            if isinstance(end, Exception):
                raise end
            return end

        verb = SimpleNamespace(run=run, DESCRIPTION="", add_arguments=lambda _: None)
        monkeypatch.setitem(sys.modules, "nixcache_oci.cli.demo", verb)

    return replace


def test_version() -> None:
    """The version is the installed package's."""
    done = _nixcache_oci("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nixcache-oci {version('nixcache-oci')}\n", "")


def test_help_tells_every_verb() -> None:
    """The first help that a person sees names each verb and what it is for."""
    done = _nixcache_oci("--help")
    assert done.returncode == 0
    for name, summary in VERBS.items():
        assert re.search(rf"^ +{name}\b", done.stdout, re.MULTILINE)
        assert summary in done.stdout


def test_start_is_light() -> None:
    """Version and help wait for no HTTP library, event loop or cryptography."""
    script = """
        import sys
        from nixcache_oci.cli.main import main
        main(["--version"])
        main(["--help"])
        heavy = {"aiohttp", "asyncio", "nacl", "yarl", "platformdirs", "zstandard"}
        print("heavy:", *(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        check=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.endswith("heavy:\n")


@pytest.mark.parametrize(
    ("command", "where", "message"),
    [
        ("", "", "the following arguments are required: VERB"),
        ("pubish", "", "unknown verb 'pubish': did you mean publish?"),
        ("LIST", "", "unknown verb 'LIST': did you mean list?"),
        ("frobnicate", "", f"unknown verb 'frobnicate'; there are: {', '.join(VERBS)}"),
        ("--verison", "", "unknown flag --verison: did you mean --version?"),
        ("--frobnicate", "", "unknown flag --frobnicate"),
        ("push --dryrun ./x", " push", "unknown flag --dryrun: did you mean --dry-run?"),
        ("push ./x --index_dir=/x", " push", "unknown flag --index_dir: did you mean --index-dir?"),
        ("push --comp xz ./x", " push", "unknown flag --comp: did you mean --compression?"),
        ("push -dry-run ./x", " push", "unknown flag -dry-run: did you mean --dry-run?"),
        ("push ./x --compression zst", " push", "unknown --compression 'zst': did you mean zstd?"),
        ("mirror --regestry x", " mirror", "unknown flag --regestry: did you mean --registry?"),
        ("pin creat x", " pin", "unknown action 'creat': did you mean create?"),
        ("pin create x y --keepdays 3", " pin create", "unknown flag --keepdays: did you mean --keep-days?"),
        ("proxy --frobnicate", " proxy", "unknown flag --frobnicate"),
        ("list this", " list", "unexpected 'this'"),
        ("list a\nb", " list", "unexpected 'a\\nb'"),
    ],
)
def test_wrong_usage_names_the_nearest(
    capsys: pytest.CaptureFixture[str], command: str, where: str, message: str
) -> None:
    """One line says what is wrong and what was probably meant, one leads to the usage; status 2.

    A misspelt flag comes before what is only missing because of it.
    """
    assert main(command.split(" ") if command else []) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"nixcache-oci{where}: error: {message}\nusage: see nixcache-oci{where} --help\n"


def test_words_behind_two_dashes_are_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor is the value of a flag that begins like one behind an equals sign."""
    assert main(["mirror", "--image=--jason", "--", "--jsn"]) == 2
    assert "error: the following arguments are required: DEST\n" in capsys.readouterr().err


def test_proxy_help_tells_flags_variables_and_defaults() -> None:
    """The help is the reference: each setting with its flag, its variable and its default."""
    done = _nixcache_oci("proxy", "--help")
    assert done.returncode == 0
    for variable in (*PROXY_VARIABLES, *REPOSITORY_VARIABLES, LOG_LEVEL):
        assert variable.name in done.stdout
        if variable.flag is not None:
            default = variable.default_note or variable.default or "none"
            written = variable.flag if variable.is_switch else f"{variable.flag} {variable.metavar}"
            assert written in done.stdout
            assert f"[{variable.name}, default: {default}]" in done.stdout


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        ([], {"NIXCACHE_PORT": "x"}, "NIXCACHE_PORT 'x': expected a port number from 0 to 65535"),
        (["--port=x"], {}, "--port 'x': expected a port number from 0 to 65535"),
        (
            [],
            {"NIXCACHE_REGISTRY": "ghcr.io"},
            _NO_REPOSITORY,
        ),
    ],
)
def test_a_wrong_setting_stops_the_start(
    flags: list[str], environment: dict[str, str], expected: str
) -> None:
    """One clear line and status 2."""
    done = _nixcache_oci("proxy", *flags, **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"nixcache-oci: error: {expected}\n"


@pytest.mark.parametrize("verb", ["proxy", "push ./x", "export x"])
def test_an_unknown_variable_is_warned_of(verb: str) -> None:
    """A misspelt variable is named before anything else can go wrong."""
    done = _nixcache_oci(*verb.split(), NIXCACHE_IMGAE="x", NIXCACHE_IMAGE=":", NIXCACHE_REPO="a/b")
    warning, error = done.stderr.splitlines()
    assert "level=warning" in warning
    assert "NIXCACHE_IMGAE is not a variable" in warning
    assert "did you mean NIXCACHE_IMAGE?" in warning
    assert error.startswith("nixcache-oci: error: NIXCACHE_IMAGE ':'")


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (UsageError("set it"), 2, "nixcache-oci: error: set it\n"),
        (RegistryError("pull: denied", status=403), 1, "nixcache-oci: error: pull: denied\n"),
        (Error("one\ntwo \x1b[31m"), 1, "nixcache-oci: error: one\\ntwo \\x1b[31m\n"),
    ],
)
def test_exit_status(
    demo: Callable[[Exception | int], None],
    capsys: pytest.CaptureFixture[str],
    end: Exception | int,
    status: int,
    message: str,
) -> None:
    """0 done, 1 failed, 2 wrong usage; an error is one line, whatever a registry wrote into it."""
    demo(end)
    assert main(["demo"]) == status
    assert capsys.readouterr().err == message


def test_a_bug_keeps_its_traceback(demo: Callable[[Exception | int], None]) -> None:
    """Only errors that are raised on purpose are shortened."""
    demo(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        main(["demo"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_sentence(number: signal.Signals) -> None:
    """Ctrl-C is no bug: no traceback, what holds now, how to go on, and the status that shells know."""
    with _start_with_verb("print('ready', flush=True); time.sleep(30)") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    expected = "nixcache-oci: interrupted: nothing was changed; run the same command again\n"
    assert (process.returncode, errors) == (128 + number, expected)


_HANGING = """
import asyncio
async def hang():
    print('ready', flush=True)
    try:
        await asyncio.sleep(60)
    finally:
        print('cleaning up', flush=True)
        await asyncio.to_thread(time.sleep, 60)
from nixcache_oci.cli.compose import run_async
from nixcache_oci.cli.interrupt import if_interrupted
with if_interrupted('inner'), if_interrupted('innermost'):
    run_async(hang())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(number: signal.Signals) -> None:
    """Whatever is still being cleaned up: who asks twice does not want to wait."""
    with _start_with_verb("exec(hanging, globals())", f"hanging = {_HANGING!r}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number


def test_the_innermost_says_what_holds() -> None:
    """And whatever fails because of the signal says nothing."""
    body = _HANGING.replace("await asyncio.to_thread(time.sleep, 60)", "raise ValueError")
    with _start_with_verb("exec(hanging, globals())", f"hanging = {body!r}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "nixcache-oci: interrupted: innermost\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As shells do for what they start in the background."""
    with _start_with_verb(
        "print('ready', flush=True); sys.stdin.readline(); return 0",
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate("go\n", timeout=30)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("argv", "environment", "level", "is_quiet"),
    [
        ("demo", {}, None, False),
        ("-v demo", {}, "info", False),
        ("demo -v", {}, "info", False),
        ("-v demo -v", {}, "debug", False),
        ("demo -vvv", {}, "debug", False),
        ("demo -q", {}, "warning", True),
        ("-q demo", {}, "warning", True),
        ("demo -v", {"NIXCACHE_LOG_LEVEL": "error"}, "info", False),
        ("demo", {"NIXCACHE_LOG_LEVEL": "error", "RUNNER_DEBUG": "1"}, None, False),
        ("demo", {"RUNNER_DEBUG": "1"}, "info", False),
        ("demo -q", {"RUNNER_DEBUG": "1"}, "warning", True),
    ],
)
def test_verbosity_is_the_log_level(
    monkeypatch: pytest.MonkeyPatch,
    argv: str,
    environment: dict[str, str],
    level: str | None,
    is_quiet: bool,
) -> None:
    """`-v` and `-q` count before the verb and behind it, and are one way to write a setting that exists."""
    seen: list[Values] = []

    def run(values: Values) -> int:
        seen.append(values)
        return 0

    monkeypatch.setattr("nixcache_oci.cli.demo.run", run)
    for name in ("NIXCACHE_LOG_LEVEL", "RUNNER_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(argv.split()) == 0
    assert (getattr(seen[0].flags, "NIXCACHE_LOG_LEVEL", None), seen[0].flags.quiet) == (level, is_quiet)


def test_a_flag_for_the_level_wins(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Who names the level means it; and what an action of a verb is told counts as well."""
    write_empty_cache(tmp_path)
    here = ["--registry", f"oci:{tmp_path}", "--index-dir", str(tmp_path / "index")]
    assert main(["-v", "pin", "-v", "list", *here]) == 0
    assert 'event="cache read"' in capsys.readouterr().err
    assert main(["-v", "pin", "list", *here, "--log-level", "warning"]) == 0
    assert "event=" not in capsys.readouterr().err


def test_both_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody can be meant to guess which of them counts."""
    assert main(["-v", "list", "-q"]) == 2
    assert capsys.readouterr().err == "nixcache-oci: error: either -v or -q, not both\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["buffered", "more than the pipe holds"])
def test_closed_pipe_is_quiet(lines: int) -> None:
    """``nixcache-oci list | head`` ends without an error message."""
    with _start_with_verb(f"sys.stdin.readline(); print('line\\n' * {lines}); return 0") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write("go\n")
        process.stdin.flush()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, "")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (
            OSError(28, "No space left on device", "/x/y"),
            "/x/y: No space left on device; free some room, or ",
        ),
        (OSError(28, "No space left on device"), "No space left on device; free some room, or "),
        (PermissionError(13, "Permission denied", b"/x"), "/x: Permission denied\n"),
        (
            OSError(18, "Invalid cross-device link", "/a", None, "/b"),
            "/a and /b: Invalid cross-device link\n",
        ),
        (TimeoutError(), "TimeoutError\n"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer\n"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    demo: Callable[[Exception | int], None], capsys: pytest.CaptureFixture[str], end: OSError, message: str
) -> None:
    """A full disk is no bug of ours, whichever verb meets it, and needs no traceback."""
    demo(end)
    assert main(["demo"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"nixcache-oci: error: {message}")
    assert said.count("\n") == 1


def test_an_interrupted_start_shows_no_traceback() -> None:
    """Modules take a second to load on a slow machine: whoever interrupts that sees nothing of Python's."""
    script = """
        import sys, time

        class Slow:
            def find_spec(self, name, path, target=None):
                if name == "nixcache_oci.cli.main":
                    print("loading", flush=True)
                    time.sleep(60)

        sys.meta_path.insert(0, Slow())
        from nixcache_oci.__main__ import main
        main()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == -signal.SIGINT
