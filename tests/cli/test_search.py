"""The verb ``search``: by a part of the name, for people and for programs."""

from datetime import timedelta
from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED, WRONG_USAGE
from nixcache_oci.clients.repository import Repository
from nixcache_oci.nix.signature import SecretKey
from tests.cli.cache_story import run_json, write_layout
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish

KEY, OTHER = SecretKey.generate("search-1"), SecretKey.generate("other-1")
OLD = store_object("hello-1").signed(KEY)
NEW = store_object("hello-2").signed(OTHER)


@pytest.fixture(autouse=True)
def cache(layout: Path) -> None:
    async def story(repository: Repository) -> None:
        await publish(repository, [OLD, store_object("else").signed(KEY)])
        await publish(repository, [NEW], created=CREATED + timedelta(days=1))

    write_layout(layout, story)


def test_paths_are_printed_whole_the_newest_first(capsys: pytest.CaptureFixture[str]) -> None:
    """To be copied behind ``nix-store -r``."""
    assert main(["search", "HELLO"]) == DONE
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()
    assert first.split()[0] == str(NEW.narinfo.store_path)
    assert second.split()[0] == str(OLD.narinfo.store_path)
    assert first.endswith("2026-11-22T03:15:00Z")
    assert shown.err.strip().endswith(": 2 paths")


def test_a_search_that_is_cut_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The newest are kept."""
    assert main(["search", "hello", "--limit", "1"]) == DONE
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == [str(NEW.narinfo.store_path)]
    assert "more than" in shown.err
    found = run_json(capsys, "search", "hello", "--limit", "1")
    assert (found["complete"], len(found["paths"])) == (False, 1)


def test_json_is_as_in_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    """One description of a path, whatever found it; several words count together."""
    (listed,) = [
        one for one in run_json(capsys, "list")["paths"] if one["path"] == str(OLD.narinfo.store_path)
    ]
    assert run_json(capsys, "search", "1", "object") == {"complete": True, "paths": [listed]}


def test_nothing_found_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """As with grep; for programs it is an empty list all the same."""
    assert main(["search", "nothing"]) == FAILED
    assert "no name of a store path has nothing" in capsys.readouterr().err
    assert run_json(capsys, "search", "nothing", status=FAILED) == {"complete": True, "paths": []}
    assert main(["search", "  "]) == WRONG_USAGE


def test_what_clients_do_not_get_is_not_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keys configured, what none of them signed."""
    monkeypatch.setenv("NIXCACHE_PUBLIC_KEYS", str(KEY.public_key))
    found = run_json(capsys, "search", "hello")["paths"]
    assert [one["path"] for one in found] == [str(OLD.narinfo.store_path)]
