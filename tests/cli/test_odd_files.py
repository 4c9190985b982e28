"""Every verb, on a cache in a folder that somebody else wrote: one line that names what is wrong there."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from nixcache_oci.cache.index_folder import IndexFolder
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.signature import SecretKey
from tests.cli.cache_story import write_layout
from tests.support.objects import store_object
from tests.support.odd_files import NO_FILES, NO_FOLDERS, put_in_place, state_below
from tests.support.proxy import ProxyProcess
from tests.support.publish import publish

ONE: Final = store_object("one")
PATH: Final = str(ONE.narinfo.store_path)
VERBS: Final = (
    ("list",),
    ("info", PATH),
    ("gc",),
    ("gc", "--dry-run"),
    ("verify",),
    ("verify", "--repair"),
    ("pin", "list"),
    ("pin", "create", "name", PATH),
    ("export", "EXPORTED"),
    ("import", "IMPORTED"),
    ("mirror", "CACHE", "OTHER"),
    ("mirror", "OTHER", "CACHE"),
    ("use",),
    ("doctor",),
)


@pytest.fixture
def cache(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that was whole, beside another one."""
    for folder in (layout, tmp_path / "other"):
        write_layout(folder, lambda repository: publish(repository, [ONE]))
    imported = tmp_path / "imported"
    (imported / "nar").mkdir(parents=True)
    (imported / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    monkeypatch.setenv("NIXCACHE_UPSTREAM", "")
    monkeypatch.setenv("NIX_SIGNING_KEY", SecretKey.generate("key-1").render())
    monkeypatch.setenv("HOME", str(tmp_path))
    return layout


def arguments_of(verb: tuple[str, ...], folder: Path) -> list[str]:
    places = {
        "CACHE": f"oci:{folder}/cache",
        "OTHER": f"oci:{folder}/other",
        "EXPORTED": f"{folder}/exported",
        "IMPORTED": f"{folder}/imported",
    }
    return [places.get(word, word) for word in verb]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_names_what_is_no_file(cache: Path, tmp_path: Path, verb: tuple[str, ...]) -> None:
    """At once, as a process of its own that has nobody to end it, and with the status of a failure."""
    (cache / "index.json").unlink()
    os.mkfifo(cache / "index.json")
    command = [sys.executable, "-m", "nixcache_oci", *arguments_of(verb, tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    named = [
        line for line in (done.stdout + done.stderr).splitlines() if "index.json is a named pipe" in line
    ]
    assert len(named) == 1, done
    assert named[0].endswith(f"{cache}/index.json is a named pipe, not a file; remove it")
    assert "Traceback" not in done.stderr
    assert done.returncode == FAILED


def test_the_proxy_starts_and_ends_beside_a_hostile_cache(cache: Path, tmp_path: Path) -> None:
    """It says what is wrong, answers everything else, and ends when it is told to."""
    (cache / "index.json").unlink()
    os.mkfifo(cache / "index.json")
    with ProxyProcess(tmp_path / "proxy", NIXCACHE_REGISTRY=f"oci:{cache}") as proxy:
        assert proxy.ask(f"/{ONE.narinfo.store_path.hash_part}.narinfo").status == 404
        assert proxy.ask("/health").status == 200
        began = time.monotonic()
        proxy.process.send_signal(signal.SIGTERM)
        assert proxy.process.wait(30) == 0
        assert time.monotonic() - began < 10
        assert "index.json is a named pipe, not a file; remove it" in proxy.log


@pytest.mark.parametrize("suffix", ["table", "keys"])
def test_what_cannot_be_written_is_one_line(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    """Trouble with the index folder, a full disk among it, is no traceback, and no work ends for it."""
    assert main(["list"]) == DONE
    [path] = IndexFolder(tmp_path / "index", Layout(cache).name).path.glob(f"tables/*.{suffix}")
    path.unlink()
    path.mkdir()
    listed = capsys.readouterr().out
    assert main(["list"]) == DONE
    out, err = capsys.readouterr()
    assert out == listed
    assert err.count(f"not kept on disk: {path} is a folder, not a file; remove it") == 1
    assert "Traceback" not in err


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_in_the_way_of_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """It is replaced, and a folder is named; nothing is read or written where a link leads."""
    exported, elsewhere = tmp_path / "exported", tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert main(["export", str(exported)]) == DONE
    path = exported / f"{ONE.narinfo.store_path.hash_part}.narinfo"
    named = put_in_place(kind, path, elsewhere)
    before = state_below(elsewhere)
    status = main(["export", str(exported)])
    assert state_below(elsewhere) == before
    if kind == "folder":
        assert status == FAILED
        assert named in capsys.readouterr().err
    else:
        assert status == DONE
        assert stat.S_ISREG(path.lstat().st_mode)
        assert f"StorePath: {PATH}\n" in path.read_text()


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", NO_FOLDERS)
def test_an_export_writes_into_no_other_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Only the folder that the user named may be behind a link."""
    exported, elsewhere = tmp_path / "exported", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (exported / "nar").mkdir(parents=True)
    named = put_in_place(kind, exported / "nar", elsewhere)
    assert main(["export", str(exported)]) == FAILED
    assert named in capsys.readouterr().err
    assert list(elsewhere.rglob("*.nar*")) == []


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_a_pipe_in_place_of_the_whole_cache(
    layout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """It is named as well, and not said to be a cache that does not exist yet."""
    put_in_place(kind, layout, tmp_path)
    assert main(["list"]) == FAILED
    assert f"Not a directory ({layout})" in capsys.readouterr().err
    assert main(["doctor"]) == FAILED
    assert f"{layout} is not a folder" in capsys.readouterr().out
