import os
from pathlib import Path

import pytest

from nixcache_oci.clients.local_store.nix_program import Nix
from nixcache_oci.clients.local_store.nix_settings import (
    NixSettings,
    current_user,
    read_settings,
    system_environment,
    uses_daemon,
)
from nixcache_oci.clients.local_store.store import find_real_store_dir, find_store_path
from nixcache_oci.errors import FormatError, StoreError, UsageError

_NAME = "rmls3l6557n63na18h9lxrdfnjb00vrc-top"
_OTHER = "v71yfj64kk1f150ln7lhazlhk04sfvm1-base"


@pytest.mark.parametrize(
    ("store", "real"),
    [
        *(("auto", "/"), ("daemon", "/"), ("local", "/"), ("unix:///run/nix/socket", "/")),
        *(("local?root=/chroot", "/chroot"), ("local://?root=/chroot", "/chroot")),
        ("local?root=/a%20b+c&trusted=1", "/a b+c"),
        *(("unix:///run/nix/socket?root=/chroot", "/chroot"), ("/chroot", "/chroot")),
        *(("/chroot?require-sigs=false", "/chroot"), ("local:///chroot", "/chroot")),
    ],
)
def test_where_files_are(store: str, real: str, tmp_path: Path) -> None:
    """Files of a chroot store are below its root, whichever way Nix spells it; others have their own name."""
    found = find_real_store_dir(store, str(tmp_path), {})
    assert found == Path(real) / str(tmp_path).lstrip("/")
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
    folder = tmp_path / "store"
    (folder / _NAME / "bin").mkdir(parents=True)
    (folder / _OTHER).write_text("base")
    (folder / _NAME / "base").symlink_to(folder / _OTHER)
    return folder


def _find(path: Path | str, store: Path) -> str:
    return find_store_path(str(path), str(store), store).base_name


def test_paths_in_the_store(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in an object means it, even where a link in it leads on; so do links of nix-build."""
    (tmp_path / "result").symlink_to(store / _NAME)
    (tmp_path / "latest").symlink_to("result")
    (tmp_path / "folder").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for inside in ("", "/", "/bin/run", "/base"):
        assert _find(f"{store}/{_NAME}{inside}", store) == _NAME
    for link in ("./result", "result/base", "folder/latest/bin"):
        assert _find(link, store) == _NAME


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


URL = "http://127.0.0.1:37515"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Settings of the machine, of the user, and of this shell."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nix.conf").write_text(
        "substituters = http://system\ntrusted-users = root bob\nfallback = true\n"
    )
    (tmp_path / "home/.config/nix").mkdir(parents=True)
    (tmp_path / "home/.config/nix/nix.conf").write_text(f"extra-substituters = {URL}\n")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "NIX_CONF_DIR": str(tmp_path / "etc"),
        "NIX_CONFIG": "extra-substituters = http://shell\nrequire-sigs = false",
    }


@pytest.mark.needs("nix")
async def test_the_user_and_the_system(environment: dict[str, str]) -> None:
    """A daemon knows the machine's settings alone, and says so itself."""
    own = await read_settings(Nix(environment, print))
    system = await read_settings(Nix(system_environment(environment), print))
    assert own.substituters == ("http://system", URL, "http://shell")
    assert system.substituters == ("http://system",)
    assert (own.require_sigs, system.require_sigs) == (False, True)
    assert own.fallback
    assert own.trusted_users == ("root", "bob")
    assert own.store == "auto"


@pytest.mark.needs("nix")
async def test_a_line_that_nix_refuses(environment: dict[str, str]) -> None:
    """Its own words."""
    (Path(environment["NIX_CONF_DIR"]) / "nix.conf").write_text("fallback=true\n")
    with pytest.raises(StoreError):
        await read_settings(Nix(environment, print))
    with pytest.raises(FormatError, match="substituters"):
        NixSettings.parse({})  # what is missing is named, and not taken for something


def test_whether_a_daemon_works(tmp_path: Path) -> None:
    """By the store that is named; else where there is a socket, and the store is not ours to write."""
    environment = {"NIX_STATE_DIR": str(tmp_path / "gone")}
    assert uses_daemon("daemon", environment)
    assert uses_daemon("unix:///socket", environment)
    assert not uses_daemon("local", environment)
    assert not uses_daemon("auto", environment)
    assert not uses_daemon("auto", {"NIX_STATE_DIR": str(tmp_path)})
    name, groups = current_user()
    assert name
    assert groups
