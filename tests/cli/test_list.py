"""The verb ``list``: each path once, roots and pins, for people, for grep and for programs."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.record import PinRecord, PublishRecord, Record, UnpinRecord
from nixcache_oci.cache.table import Table, TableHeader, render_table
from nixcache_oci.cli.main import PIPE_CLOSED, main
from nixcache_oci.cli.verb import DONE, FAILED, WRONG_USAGE
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.cli.cache_story import condemn, publish_text, run_json, write_empty_cache, write_layout
from tests.support.journey import push_with, settings_of
from tests.support.objects import store_object
from tests.support.publish import CREATED, StoreObject, publish
from tests.support.registries import Ghcr

KEY = SecretKey.generate("list-1")
A, B = (store_object(name, contents=name.encode() * 5000).signed(KEY) for name in "ab")
DAY = timedelta(days=1)


def put(layout: Path, *objects: StoreObject, days: int = 0, records: Iterable[Record] = ()) -> None:
    write_layout(
        layout,
        lambda cache: publish(
            cache, objects, created=CREATED + days * DAY, records=tuple(records), keys=[KEY]
        ),
    )


def spoilt_table(one: StoreObject, before: str, after: str, *records: Record) -> str:
    text = render_table(Table(TableHeader(CREATED + DAY), records, (one.compressed()[0],))).decode()
    assert text.count(before) == 1
    return text.replace(before, after)


def test_what_is_condemned_is_marked(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless another segment lists it as well: the path stays, and is one line."""

    async def story(cache: Repository) -> None:
        dying = await publish(cache, [A, B])
        await publish(cache, [B], created=CREATED + DAY)
        await condemn(cache, dying, "2026-12-01T00:00:00Z")

    write_layout(layout, story)
    assert main(["list"]) == DONE
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()
    assert first.split()[0] == A.narinfo.store_path.base_name
    assert first.endswith("2026-11-21T03:15:00Z  condemned")
    assert second.split()[0] == B.narinfo.store_path.base_name
    assert second.endswith("2026-11-22T03:15:00Z")
    assert "2 paths, " in shown.err


def test_json_has_one_object_a_line(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole document for programs, and for grep one path a line."""
    put(layout, A, B)
    assert main(["list", "--json"]) == DONE
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if A.narinfo.store_path.base_name in line]
    assert [json.loads(line.rstrip(","))["path"] for line in lines] == [str(A.narinfo.store_path)]
    assert [one["path"] for one in json.loads(text)["paths"]] == [
        str(A.narinfo.store_path),
        str(B.narinfo.store_path),
    ]


def test_an_empty_cache_is_json_too(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A program need not know of empty caches: their index lists nothing."""
    write_empty_cache(layout)
    assert run_json(capsys, "list") == {"paths": []}
    assert run_json(capsys, "list", "--roots") == {"roots": [], "pins": []}


def test_pins_that_count_are_listed_with_the_roots(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both keep paths; a pin that was taken back, or has run out, keeps none."""
    path = A.narinfo.store_path
    put(
        layout,
        A,
        records=[
            PublishRecord("main-x", "1", CREATED, (("packages.x.a", path),)),
            PinRecord("kept", path, CREATED, "forever"),
            PinRecord("gone", path, CREATED, "forever"),
            UnpinRecord("gone", CREATED + DAY),
            PinRecord("old", path, CREATED, "until 2000-01-01T00:00:00Z"),
        ],
    )
    keepers = run_json(capsys, "list", "--roots")
    assert keepers["pins"] == [
        {"name": "kept", "path": str(path), "pinned": "2026-11-21T03:15:00Z", "keep": "forever"}
    ]
    assert [root["name"] for root in keepers["roots"]] == ["packages.x.a"]
    assert main(["list", "--roots"]) == DONE
    root, pin = capsys.readouterr().out.splitlines()
    assert root.split() == ["main-x", "packages.x.a", "2026-11-21T03:15:00Z", path.base_name]
    assert pin.split() == ["(pin)", "kept", "2026-11-21T03:15:00Z", path.base_name, "kept", "forever"]


def test_a_malformed_narinfo_is_named(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All else is listed, and the exit status tells."""
    text = spoilt_table(B, f"NarSize: {B.narinfo.nar_size}", "NarSize: many")
    put(layout, A)
    write_layout(layout, lambda cache: publish_text(cache, text, CREATED + DAY))
    assert main(["list"]) == FAILED
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == [A.narinfo.store_path.base_name]
    assert "segment-20261122t031500z" in shown.err
    assert "'many'" in shown.err


def test_a_malformed_record_is_named(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It concerns roots only: the paths of its table are listed, and nothing is wrong with them."""
    record = PublishRecord("main-x", "2", CREATED + DAY)
    put(layout, A, records=[PublishRecord("main-x", "1", CREATED, (("a", A.narinfo.store_path),))])
    text = spoilt_table(B, "Publish: main-x 2 ", "Publish: main-x ", record)
    write_layout(layout, lambda cache: publish_text(cache, text, CREATED + DAY))
    assert len(run_json(capsys, "list")["paths"]) == 2
    assert main(["list", "--roots", "--json"]) == FAILED
    shown = capsys.readouterr()
    assert [root["name"] for root in json.loads(shown.out)["roots"]] == ["a"]
    assert "the records of segment-20261122t031500z" in shown.err


def test_nobody_reads_to_the_end(layout: Path) -> None:
    """As in ``nixcache-oci list | head -1``: no traceback, and not a word."""
    put(layout, *(replace(A, narinfo=store_object(str(number)).narinfo) for number in range(3000)))
    with subprocess.Popen(
        [sys.executable, "-m", "nixcache_oci", "list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"paths"')
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == PIPE_CLOSED


def test_a_registry_with_credentials(
    ghcr: Ghcr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read with the settings that the proxy has; the second time, tables come from disk."""
    push_with(ghcr, lambda cache: publish(cache, [A, B], keys=[KEY]))
    for name, value in settings_of(ghcr, tmp_path).items():
        monkeypatch.setenv(name, value)
    arguments = ("list", "--index-dir", str(tmp_path / "index"))
    first = run_json(capsys, *arguments)
    assert [one["path"] for one in first["paths"]] == [str(one.narinfo.store_path) for one in (A, B)]
    ghcr.server.reset_requests()
    assert run_json(capsys, *arguments) == first
    assert ghcr.server.count("blob-get") == 0


def test_a_registry_that_does_not_answer(
    ghcr: Ghcr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names it, and nothing that looks like an empty cache."""
    for name, value in settings_of(ghcr, tmp_path).items():
        monkeypatch.setenv(name, value)
    ghcr.server.fault("/v2/", "status", status=403, times=None)
    assert main(["list", "--index-dir", str(tmp_path / "index")]) == FAILED
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("nixcache-oci: error: ")
    assert ghcr.server.host in line


def test_what_is_logged_can_be_chosen(layout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings by default; a level that there is not is refused."""
    put(layout, A)
    levels = []
    for arguments in ([], ["--log-level", "debug"]):
        assert main(["list", *arguments]) == DONE
        levels.append(logging.getLogger().level)
    assert levels == [logging.WARNING, logging.DEBUG]
    assert main(["list", "--log-level", "loud"]) == WRONG_USAGE
    assert "--log-level 'loud'" in capsys.readouterr().err
