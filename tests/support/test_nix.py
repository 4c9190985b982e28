from pathlib import Path

import pytest

from tests.support.nix import NixSandbox

pytestmark = pytest.mark.needs("nix", "nix-store", "nix-build")


@pytest.fixture
def nix(tmp_path: Path) -> NixSandbox:
    return NixSandbox(tmp_path / "nix")


def test_built_paths_are_the_same_again(nix: NixSandbox, tmp_path: Path) -> None:
    """The same arguments give the same store paths with the same NARs; references point backwards."""
    paths = nix.build_paths(60)
    infos = nix.path_info(paths)
    assert list(infos) == sorted(set(paths))
    assert len(paths) == 60
    order = {path: position for position, path in enumerate(paths)}
    for path, info in infos.items():
        assert all(order[reference] <= order[path] for reference in info["references"])
        assert "ca" not in info
    assert paths[6] in infos[paths[6]]["references"]
    other = NixSandbox(tmp_path / "other")
    assert other.build_paths(60) == paths
    assert other.dump(paths[59]) == nix.dump(paths[59])


def test_substitution_through_a_binary_cache(nix: NixSandbox, tmp_path: Path) -> None:
    """What was copied to a cache arrives in an empty store, byte for byte, if its key is trusted."""
    paths = nix.build_paths(10)
    secret, public = nix.generate_key("test-1")
    cache = f"file://{tmp_path}/cache"
    nix.copy_to(f"{cache}?secret-key={secret}", paths).check()
    untrusted = nix.realise(paths, substituters=[cache])
    assert untrusted.returncode != 0
    trusted = nix.realise(paths, substituters=[cache], trusted_keys=[public]).check()
    assert [nix.dump(path, trusted.store) for path in paths] == [nix.dump(path) for path in paths]
    nix.realise(paths, substituters=[cache], require_sigs=False).check()


def test_signatures_stay_in_the_store(nix: NixSandbox) -> None:
    """A path signed by an upstream's key shows it."""
    path = nix.build_file("hello", b"hello\n")
    assert nix.physical(path).read_bytes() == b"hello\n"
    secret, _ = nix.generate_key("cache.example.org-1")
    nix.sign([path], secret)
    (signature,) = nix.path_info([path])[path]["signatures"]
    assert signature.startswith("cache.example.org-1:")


def test_added_path(nix: NixSandbox, tmp_path: Path) -> None:
    """A folder of the machine becomes a content-addressed store path."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("content")
    path = nix.add_path(tmp_path / "folder")
    assert nix.path_info([path])[path]["ca"].startswith("fixed:r:sha256:")


def test_builds_where_the_cache_has_nothing(nix: NixSandbox, tmp_path: Path) -> None:
    """An empty cache does not keep Nix from building, in a store of any name."""
    expression = """derivation {
      name = "x"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" "echo > $out" ];
    }"""
    cache = f"file://{tmp_path}/cache"
    store = nix.new_store()
    built = nix.build_expression(expression, substituters=[cache], store=store).check()
    assert nix.physical(built.stdout.strip(), store).read_text() == "\n"


def test_store_under_its_own_name(tmp_path: Path) -> None:
    """With a store folder of its own, every store path exists where it says."""
    nix = NixSandbox(tmp_path / "nix", store_dir=tmp_path / "store")
    paths = nix.build_paths(5)
    assert all(Path(path).exists() for path in paths)
    secret, public = nix.generate_key("test-1")
    cache = f"file://{tmp_path}/cache"
    nix.copy_to(f"{cache}?secret-key={secret}", paths).check()
    run = nix.realise(paths, substituters=[cache], trusted_keys=[public]).check()
    assert nix.dump(paths[4], run.store) == nix.dump(paths[4])
