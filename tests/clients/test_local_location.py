from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.store import find_real_store_dir, find_store_path
from nixcache_oci.errors import FormatError, UsageError

_NAME = "rmls3l6557n63na18h9lxrdfnjb00vrc-top"
_OTHER = "v71yfj64kk1f150ln7lhazlhk04sfvm1-base"


@pytest.mark.parametrize(
    ("store", "real"),
    [
        ("auto", "/"),
        ("daemon", "/"),
        ("local", "/"),
        ("unix:///run/nix/socket", "/"),
        ("local?root=/chroot", "/chroot"),
        ("local://?root=/chroot", "/chroot"),
        ("local?root=/a%20b+c&trusted=1", "/a b+c"),
        ("unix:///run/nix/socket?root=/chroot", "/chroot"),
        ("/chroot", "/chroot"),
        ("/chroot?require-sigs=false", "/chroot"),
        ("local:///chroot", "/chroot"),
    ],
)
def test_where_files_are(store: str, real: str, tmp_path: Path) -> None:
    """Files of a chroot store are below its root, whichever way Nix spells it; others have their own name."""
    found = find_real_store_dir(store, str(tmp_path), {})
    assert found == Path(real) / str(tmp_path).lstrip("/")


def test_a_folder_that_is_named() -> None:
    """Where Nix is told the folder, that is it."""
    assert find_real_store_dir("local?root=/chroot&real=/files", "/nix/store", {}) == Path("/files")


def test_a_users_own_store(tmp_path: Path) -> None:
    """Without /nix and without a daemon, Nix itself goes to the home folder."""
    absent = f"{tmp_path}/absent/store"
    environment = {"HOME": str(tmp_path)}
    assert find_real_store_dir("auto", absent, environment) == Path(absent)
    root = tmp_path / ".local/share/nix/root"
    root.mkdir(parents=True)
    assert find_real_store_dir("auto", absent, environment) == root / absent.lstrip("/")
    other = {**environment, "XDG_DATA_HOME": str(tmp_path / "data")}
    assert find_real_store_dir("auto", absent, other) == Path(absent)
    assert find_real_store_dir("daemon", absent, environment) == Path(absent)


@pytest.mark.parametrize(
    "store", ["ssh-ng://host", "https://cache.example.org", "s3://bucket", "file:///cache"]
)
def test_a_store_elsewhere(store: str) -> None:
    """NARs are read from files: a store without files here is refused, and named."""
    with pytest.raises(UsageError, match=store):
        find_real_store_dir(store, "/nix/store", {})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store folder with two objects, one of which links to the other."""
    folder = tmp_path / "store"
    (folder / _NAME / "bin").mkdir(parents=True)
    (folder / _OTHER).write_text("base")
    (folder / _NAME / "base").symlink_to(folder / _OTHER)
    return folder


def _find(path: Path | str, store: Path, real: Path | None = None) -> str:
    return find_store_path(str(path), str(store), real or store).base_name


def test_paths_in_the_store(store: Path) -> None:
    """A path in an object means that object, even where a link in it leads to another."""
    assert _find(store / _NAME, store) == _NAME
    assert _find(f"{store}/{_NAME}/", store) == _NAME
    assert _find(store / _NAME / "bin/run", store) == _NAME
    assert _find(store / _NAME / "base", store) == _NAME


def test_links_to_the_store(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nix-build leaves behind names what it built, also through further links."""
    (tmp_path / "result").symlink_to(store / _NAME)
    (tmp_path / "latest").symlink_to("result")
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert _find("./result", store) == _NAME
    assert _find("result/base", store) == _NAME
    assert _find("folder/latest/bin", store) == _NAME


def test_links_in_a_chroot_store(store: Path, tmp_path: Path) -> None:
    """There, links lead to paths that do not exist under that name; and files may be named where they are."""
    (tmp_path / "result").symlink_to(f"/nix/store/{_NAME}")
    assert find_store_path(str(tmp_path / "result"), "/nix/store", store).base_name == _NAME
    found = find_store_path(str(store / _NAME / "bin"), "/nix/store", store)
    assert str(found) == f"/nix/store/{_NAME}"


def test_paths_elsewhere(store: Path, tmp_path: Path) -> None:
    """What is not in the store is refused with the remedy; a mistyped name as what it is; a loop ends."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("file", "loop"):
        with pytest.raises(UsageError, match=rf"{name}: not in the store .*such as ./result"):
            _find(tmp_path / name, store)
    with pytest.raises(UsageError, match=r"resutl: No such file"):
        _find(tmp_path / "resutl", store)
    with pytest.raises(UsageError, match=r"\.#hello: No such file.*; publish takes a flake"):
        _find(tmp_path / ".#hello", store)
    with pytest.raises(FormatError):
        _find(store / ".links", store)
