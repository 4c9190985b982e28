import asyncio
import os
import signal
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.nix_program import Nix, Version, parse_version
from nixcache_oci.clients.local_store.program import Ended, find_reason, run_program
from nixcache_oci.errors import StoreError, UsageError

_ENVIRONMENT = {"PATH": os.environ["PATH"]}


def _ignore(_: str) -> None:
    """Take a line, and leave it."""


async def _run(script: str, lines: list[str] | None = None, *, most_bytes: int = 1000) -> Ended:
    shown = [] if lines is None else lines
    return await run_program("sh", ["-c", script], _ENVIRONMENT, shown.append, most_bytes=most_bytes)


def _write_program(folder: Path, name: str, text: str) -> dict[str, str]:
    """Write a program, and give an environment that finds it first."""
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


async def test_output_and_status() -> None:
    """What a program prints, how it ends and what it complains about are three things."""
    lines: list[str] = []
    ended = await _run("echo out; echo one >&2; printf 'error: two' >&2; exit 3", lines)
    assert ended == Ended(3, b"out\n", "two")
    assert lines == ["one", "error: two"]


async def test_a_program_gets_what_is_harmless() -> None:
    """No secret of our variables reaches a builder; what a user names is an argument, no shell text."""
    given = {**_ENVIRONMENT, "HOME": "/home/me", "GITHUB_TOKEN": "secret", "SOME_PASSWORD": "secret"}
    ended = await run_program("env", [], given, _ignore)
    assert sorted(ended.stdout.decode().splitlines()) == ["HOME=/home/me", f"PATH={os.environ['PATH']}"]
    ended = await run_program("printf", ["%s|", "a b", "$(id)", "; exit 1"], _ENVIRONMENT, _ignore)
    assert ended.stdout == b"a b|$(id)|; exit 1|"


async def test_odd_lines() -> None:
    """No bytes and no endless line stop what follows; a carriage return ends a line, as for GitHub."""
    lines: list[str] = []
    await _run(r"printf 'a\r::b\rc\r\nd\r' >&2; printf '\ne\n' >&2", lines)
    assert lines == ["a", "::b", "c", "d", "e"]
    lines.clear()
    await _run(
        r"printf '\377\r\n' >&2; head -c 200000 /dev/zero | tr '\0' x >&2; echo >&2; echo end >&2", lines
    )
    assert (lines[0], "".join(lines[1:-1]), lines[-1]) == ("�", "x" * 200000, "end")


async def test_too_much_output() -> None:
    """Memory is bounded: a program that prints for ever is ended."""
    with pytest.raises(StoreError, match="more than 1000 bytes"):
        await _run("exec yes")


async def test_an_error_of_the_listener_ends_the_program() -> None:
    """A terminal that went away does not leave a build behind that nobody reads."""

    def fail(_: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await run_program("sh", ["-c", "echo line >&2; exec sleep 60"], _ENVIRONMENT, fail)


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "], ids=["asked", "killed"])
async def test_cancelling_ends_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    """Ctrl-C leaves no build behind, also none that ignores being asked; its log was seen while it ran."""
    if trap:
        monkeypatch.setattr("nixcache_oci.clients.local_store.program._GRACE", 0.2)
    pids = tmp_path / "pids"
    script = f"{trap}sleep 60 & echo $! $$ > {pids}; echo ready >&2; while :; do wait; done"
    ready = asyncio.Event()
    running = asyncio.create_task(run_program("sh", ["-c", script], _ENVIRONMENT, lambda _: ready.set()))
    await asyncio.wait_for(ready.wait(), 60)
    assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not [pid for pid in map(int, pids.read_text().split()) if _is_alive(pid)]


async def test_missing_program() -> None:
    """Who has no Nix is told where to get it."""
    with pytest.raises(UsageError, match=r"nix-store: no such program.*install Nix"):
        await run_program("nix-store", [], {"PATH": "/nonexistent"}, _ignore)
    nix = Nix({"PATH": "/nonexistent"}, _ignore)
    assert await nix.version() is None
    with pytest.raises(UsageError, match=r"nix: .*install a newer one"):
        await nix.require_version()


async def test_refusal(tmp_path: Path) -> None:
    """An error says which command it was, and Nix's own reason."""
    environment = _write_program(
        tmp_path, "nix", "echo 'warning: x' >&2; echo 'error: no such thing' >&2; exit 1"
    )
    lines: list[str] = []
    nix = Nix(environment, on_line=lines.append)
    with pytest.raises(StoreError, match=r"^nix path-info: no such thing$"):
        await nix.ask("path-info", "x")
    assert lines == ["warning: x", "error: no such thing"]


async def test_ended_by_a_signal(tmp_path: Path) -> None:
    """Out of memory is not taken for a refusal; a nix command before 2.4 is as good as none."""
    environment = _write_program(tmp_path, "nix-store", "kill -9 $$")
    _write_program(tmp_path, "nix", "echo 'nix (Nix) 2.3.16'")
    assert await Nix(environment, _ignore).version() is None
    with pytest.raises(StoreError, match=f"was ended by signal {signal.SIGKILL}"):
        await Nix(environment, _ignore).ask_old("nix-store", "--query")


async def test_every_call_has_features_and_options(tmp_path: Path) -> None:
    """Nix's new commands are off by default, and options are what replaces a change of nix.conf."""
    environment = _write_program(tmp_path, "nix", 'printf "%s\\n" "$@"')
    nix = Nix(environment, _ignore, [("extra-substituters", "http://127.0.0.1:1 http://127.0.0.1:2")])
    assert (await nix.ask("build", "x")).decode().splitlines() == [
        *("--extra-experimental-features", "nix-command flakes"),
        *("--option", "extra-substituters", "http://127.0.0.1:1 http://127.0.0.1:2"),
        *("build", "x"),
    ]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        *(("nix (Nix) 2.8.0\n", (2, 8, 0)), ("nix (Nix) 2.34.8\n", (2, 34, 8))),
        *(("nix (Nix) 2.20.0pre20231212_abcdef\n", (2, 20, 0)), ("nix (Nix) 2.19\n", (2, 19, 0))),
        ("nix (Determinate Nix 3.6.2) 2.29.0\n", (2, 29, 0)),
        ("nix (Lix, like Nix) 2.93.0\n", (2, 18, 0)),
    ],
)
def test_versions(text: str, version: Version) -> None:
    """It tells which options a Nix knows; Lix counts differently; another program is no Nix."""
    assert parse_version(text) == version
    with pytest.raises(StoreError, match="got 'hello'"):
        parse_version("hello\n")


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["error: a", "error: b"], "b"),
        (["error:", "       … while calling", "", "       error: deep"], "deep"),
        (["error: builder failed with exit code 3;", "       last 2 log lines:", "       > x"], None),
        (["\x1b[31;1merror:\x1b[0m coloured"], "coloured"),
        (["warning: w", "killed"], "killed"),
        ([], "it did not say why"),
    ],
)
def test_reasons(lines: list[str], reason: str | None) -> None:
    """The one line that an error repeats is the one that tells most."""
    assert find_reason(lines) == (reason or "builder failed with exit code 3")


def _is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
