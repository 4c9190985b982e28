"""What a path means in a cache: whatever ``push`` takes, and what only a cache knows, several at once."""

import io
from pathlib import Path

import pytest

from nixcache_oci.cache.record import PublishRecord
from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import DONE, FAILED, WRONG_USAGE
from nixcache_oci.nix.signature import SecretKey
from tests.cli.cache_story import run_json, write_layout
from tests.support.objects import store_object
from tests.support.publish import CREATED, publish

KEY = SecretKey.generate("paths-1")
A, B, C = (store_object(name) for name in "abc")
PATHS = {one.narinfo.store_path.name: str(one.narinfo.store_path) for one in (A, B, C)}
(A_PATH, B_PATH, C_PATH) = PATHS.values()


@pytest.fixture
def cache(layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A and B in a cache, C only in the store; links to them in the folder that is given."""
    roots = (
        ("packages.x.hello", A.narinfo.store_path),
        ("packages.y.twice", A.narinfo.store_path),
        ("checks.y.twice", B.narinfo.store_path),
        ("result", B.narinfo.store_path),
    )
    record = PublishRecord("main-x", "1", CREATED, roots)
    write_layout(layout, lambda repository: publish(repository, [A, B], keys=[KEY], records=[record]))
    folder = tmp_path / "work"
    (folder / "below").mkdir(parents=True)
    links = {
        "link": A_PATH,
        "other": "link",
        "below/up": "../other",
        "in": f"{A_PATH}/bin",
        "c": C_PATH,
        "etc": "/etc",
        "loop": "loop",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    # A store in another root, whose object is a link to another one.
    real = tmp_path / "root/nix/store"
    real.mkdir(parents=True)
    (real / Path(A_PATH).name).mkdir()
    (real / Path(C_PATH).name).symlink_to(real / Path(A_PATH).name)
    (folder / "chroot").symlink_to(real / Path(A_PATH).name)
    (folder / "to-c").symlink_to(real / Path(C_PATH).name)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "what",
    [
        A_PATH,
        f"{A_PATH}/bin/hello",
        f"{A_PATH}/",
        Path(A_PATH).name,
        A.narinfo.store_path.hash_part,
        *(f"elsewhere/{Path(A_PATH).name}/bin", "link", "./link", "other", "./below/../other/bin/hello"),
        *("below/up", "in", "in/hello", "chroot", "packages.x.hello", "hello"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_means_a_path(capsys: pytest.CaptureFixture[str], what: str) -> None:
    """Store paths, what lies inside, links to either, hash parts, roots, and the end of a root's name."""
    for words in (["info", what], ["pin", "create", "release", what]):
        document = run_json(capsys, *words)
        (found,) = document["pinned" if words[0] == "pin" else "paths"]
        assert found["path"] == A_PATH


@pytest.mark.parametrize(
    ("what", "status", "message"),
    [
        (C_PATH, FAILED, f"does not list {C_PATH}; publish it first"),
        ("c", FAILED, "does not list c; publish it first"),
        ("to-c", FAILED, "does not list to-c; publish it first"),
        ("./missing", WRONG_USAGE, "/missing: No such file or directory"),
        ("etc", WRONG_USAGE, "etc: not in a store; give a store path, or a link to one"),
        ("loop", WRONG_USAGE, "loop: not in a store"),
        (
            "packages.x.helo",
            FAILED,
            "nor a root packages.x.helo; there is packages.x.hello",
        ),
        ("twice", FAILED, "twice means several roots; name one of checks.y.twice, packages.y.twice"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_means_none(capsys: pytest.CaptureFixture[str], what: str, status: int, message: str) -> None:
    """A store object that is not listed is never taken for another that it links to."""
    for words in (["info"], ["pin", "create", "release"]):
        assert main([*words, B_PATH, what]) == status
        assert message in capsys.readouterr().err
    assert run_json(capsys, "pin", "list") == {"pins": []}


@pytest.mark.usefixtures("cache")
def test_a_root_comes_before_a_file(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A slash makes a path of it."""
    (cache / "result").symlink_to(A_PATH)
    assert [one["path"] for one in run_json(capsys, "info", "result")["paths"]] == [B_PATH]
    assert [one["path"] for one in run_json(capsys, "info", "./result")["paths"]] == [A_PATH]


@pytest.mark.parametrize("words", [["info"], ["pin", "create", "release"]], ids=["info", "pin"])
@pytest.mark.usefixtures("cache")
def test_several_and_from_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """Each counts once; a line that means nothing is named, and the others are done, as in ``push``."""
    key = "pinned" if words[0] == "pin" else "paths"

    def give(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    give(f"hello\n\n{B_PATH}\n./missing\n")
    found = run_json(capsys, *words, "link", "--stdin", status=FAILED)
    assert [one["path"] for one in found[key]] == [A_PATH, B_PATH]
    (failed,) = found["failed"]
    assert failed["name"] == "./missing"
    assert failed["reason"].endswith("/missing: No such file or directory")
    give("./missing\n")
    assert main([*words, "--stdin"]) == FAILED
    assert capsys.readouterr().out == ""
    give("\n")
    assert main([*words, "--stdin"]) == DONE
    assert capsys.readouterr().out.endswith(": no paths on standard input\n")
    give("")
    assert run_json(capsys, *words, "--stdin")[key] == []
    assert main(words) == WRONG_USAGE
    assert "no paths; name some, or give --stdin" in capsys.readouterr().err
