"""The verb ``pin`` says what it did: to which path, for how long, and what the name keeps beside."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nixcache_oci.cache.record import PinRecord, PublishRecord
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED
from nixcache_oci.nix.signature import SecretKey
from tests.cli.cache_story import run_json, write_layout
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish

A, B = (store_object(name) for name in "ab")
A_PATH, B_PATH = (one.narinfo.store_path for one in (A, B))
FIELDS = {"cache", "name", "pinned", "released", "pins", "failed"}


@pytest.fixture
def cache(layout: Path) -> Path:
    """A and B; A was pinned long ago, until one other is."""
    records = (
        PublishRecord("main-x", "1", CREATED, (("hello", B_PATH),)),
        PinRecord("release", A_PATH, CREATED, "for 1 revisions"),
        PinRecord("other", A_PATH, CREATED, "forever"),
    )
    key = SecretKey.generate("pin-1")
    write_layout(layout, lambda repository: publish(repository, [A, B], keys=[key], records=records))
    return layout


def test_it_says_what_it_did(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name, path, how long, which root of which scope that is, what it replaced and what stays."""
    assert main(["pin", "create", "release", str(B_PATH)]) == DONE
    assert capsys.readouterr().out.splitlines() == [
        f"oci:{cache}: pinned {B_PATH} as release, kept forever (root hello of main-x)",
        f"oci:{cache}: {A_PATH} is no longer pinned as release",
    ]
    assert main(["pin", "create", "other", str(B_PATH), "--keep-revisions", "1"]) == DONE
    assert capsys.readouterr().out.splitlines() == [
        f"oci:{cache}: pinned {B_PATH} as other, kept for 1 revision (root hello of main-x)",
        f"oci:{cache}: {A_PATH} stays pinned as other, kept forever",
    ]
    assert main(["pin", "remove", "other"]) == DONE
    assert capsys.readouterr().out.splitlines() == [
        f"oci:{cache}: {path} is no longer pinned as other" for path in (A_PATH, B_PATH)
    ]
    assert main(["pin", "remove", "relaese"]) == FAILED
    assert "there is no pin relaese; did you mean release?" in capsys.readouterr().err


def test_what_is_pinned_already_is_not_pinned_again(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written, and what holds is said once."""
    stays = f"oci:{cache}: {A_PATH} stays pinned as other, kept forever"
    pins = run_json(capsys, "pin", "list")["pins"]
    assert main(["pin", "create", "other", str(A_PATH)]) == DONE
    assert capsys.readouterr().out.splitlines() == [stays]
    assert run_json(capsys, "pin", "list")["pins"] == pins


def test_a_repeated_pin_that_ends_another_is_recorded(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It displaces what was pinned meanwhile until one other would be."""
    later = PinRecord("other", B_PATH, CREATED + timedelta(days=1), "for 1 revisions")
    write_layout(cache, lambda repository: publish(repository, [B], records=[later]))
    done = run_json(capsys, "pin", "create", "other", str(A_PATH))
    assert [pin["path"] for pin in done["released"]] == [str(B_PATH)]


def test_it_says_so_as_json(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fields of a pin are those of ``list --roots``, and both actions have the same."""
    done = run_json(capsys, "pin", "create", "release", str(B_PATH), "--keep-days", "3")
    assert done.keys() == FIELDS
    assert (done["cache"], done["name"], done["failed"]) == (f"oci:{cache}", "release", [])
    (pin,) = done["pinned"]
    assert done["pins"] == [pin]
    assert pin["keep"].startswith("until 2")
    assert [one["path"] for one in done["released"]] == [str(A_PATH)]
    removed = run_json(capsys, "pin", "remove", "release")
    assert removed.keys() == FIELDS
    assert (removed["pinned"], removed["pins"], removed["released"]) == ([], [], [pin])


def test_a_name_is_pinned_again_at_once(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Times are told to the second, and an end may be the next one: what begins after it counts."""
    for _ in range(3):
        done = run_json(capsys, "pin", "create", "again", str(A_PATH), str(B_PATH))
        assert {pin["path"] for pin in done["pins"]} == {str(A_PATH), str(B_PATH)}
        assert all(pin in done["pins"] for pin in done["pinned"])
        datetime.fromisoformat(done["pins"][0]["pinned"])
        removed = run_json(capsys, "pin", "remove", "again")
        assert removed["released"] == done["pins"]
    assert {pin["name"] for pin in run_json(capsys, "pin", "list")["pins"]} == {"other", "release"}
    assert cache.is_dir()
