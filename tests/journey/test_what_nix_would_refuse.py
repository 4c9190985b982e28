"""What Nix would refuse to take from the cache is published when that was asked for, and is said."""

import json
from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.cli.verb import FAILED, WRONG_USAGE
from nixcache_oci.nix.signature import SecretKey
from tests.support.nix import NixSandbox
from tests.support.publisher import Machine

pytestmark = pytest.mark.needs("nix")


@pytest.fixture
def machine(nix: NixSandbox, tmp_path: Path) -> Machine:
    """It has no key."""
    return Machine(tmp_path / "machine", nix, {"NIXCACHE_REGISTRY": f"oci:{tmp_path / 'cache'}"})


def test_unsigned_paths_are_published_on_demand(machine: Machine, nix: NixSandbox, tmp_path: Path) -> None:
    """Nothing is written before somebody asks for it, a dry run says so too, and verify counts them."""
    paths = nix.build_paths(3)
    refused = machine.run("push", *paths)
    assert refused.status == WRONG_USAGE
    assert "nothing was published: 3 unsigned paths" in refused.stderr
    assert "--allow-unsigned" in refused.stderr
    assert not (tmp_path / "cache").exists()
    dry = machine.run("push", *paths, "--dry-run").check()
    assert "3 to push (" in dry.stderr
    assert f") to oci:{tmp_path / 'cache'}\n" in dry.stderr
    assert "warning: 3 unsigned paths" in dry.stderr
    pushed = machine.run("push", *paths, "--allow-unsigned").check()
    assert "warning: 3 unsigned paths" in pushed.stderr
    again = machine.run("push", *paths).check()
    assert "unsigned path" not in again.stderr, "nothing is written"
    checked = machine.run("verify").check()
    assert "3 paths unsigned" in checked.stderr
    counts = json.loads(machine.run("verify", "--json").check().stdout)
    assert (counts["unsigned"], counts["foreignSigned"]) == (3, 0)


def test_an_import_of_unsigned_paths(
    machine: Machine, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """As pushing, and a key that signs them makes it right."""
    paths = nix.build_paths(2)
    nix.copy_to(f"file://{tmp_path / 'source'}", paths).check()
    refused = machine.run("import", str(tmp_path / "source"))
    assert refused.status == WRONG_USAGE
    assert "2 unsigned paths" in refused.stderr
    machine.run("import", str(tmp_path / "source"), NIX_SIGNING_KEY=key.render()).check()


def test_what_somebody_vouches_for_is_not_unsigned(machine: Machine, nix: NixSandbox, tmp_path: Path) -> None:
    """A signature of any key that is none of ours, or an address by content, which Nix checks itself."""
    (signed,) = nix.build_paths(1)
    secret, _ = nix.generate_key("builder-1")
    nix.sign([signed], secret)
    (tmp_path / "file").write_text("flat")
    added = [
        nix.add_path(tmp_path / "file"),
        nix.run("nix-store", "--add-fixed", "sha256", str(tmp_path / "file")).check().stdout.strip(),
        nix.run(
            "nix-instantiate", "--eval", "--expr", '"${builtins.toFile "text" "text"}"', "--read-write-mode"
        )
        .check()
        .stdout.strip()
        .strip('"'),
    ]
    ran = machine.run("push", signed, *added).check()
    assert "unsigned path" not in ran.stderr
    counts = json.loads(machine.run("verify", "--json").check().stdout)
    assert (counts["problems"], counts["unsigned"], counts["foreignSigned"]) == ([], 0, 1)


def test_another_key_than_the_recorded_one(machine: Machine, nix: NixSandbox, key: SecretKey) -> None:
    """Clients do not trust it yet: it is named, wants a flag once, and is recorded from then on."""
    first, second, third = nix.build_paths(1), nix.build_paths(1, seed="b"), nix.build_paths(1, seed="c")
    new = {"NIX_SIGNING_KEY": SecretKey.generate("journey-2").render()}
    namesake = {"NIX_SIGNING_KEY": SecretKey.generate(key.name).render()}
    machine.run("push", *first, NIX_SIGNING_KEY=key.render()).check()
    refused = machine.run("push", *second, **new)
    assert refused.status == WRONG_USAGE
    assert f"the signing key journey-2 is not the one that the cache records ({key.name})" in refused.stderr
    assert "--new-key" in refused.stderr
    assert "needs a new name" in machine.run("push", *second, **namesake).stderr
    assert Path(second[0]).name not in machine.run("list").check().stdout
    told = machine.run("push", *second, "--new-key", **new).check()
    assert "warning: the signing key journey-2 is not the one" in told.stderr
    quiet = machine.run("push", *third, **new).check()
    assert "journey-2 is not" not in quiet.stderr
    machine.run("verify").check()
    keys = machine.run("use", "--port", "1").stdout
    assert key.name in keys
    assert "journey-2" in keys


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify",),
        ("gc",),
        ("list",),
        ("list", "--json"),
        ("info", "x"),
        ("pin", "list"),
        ("export", "exported"),
        ("mirror", "oci:mistyped", "oci:copy"),
        ("doctor", "--client"),
    ],
)
def test_a_name_where_no_cache_is(
    arguments: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistyped name is no cache without problems: it is said, and nothing is made there."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"REGISTRY": f"oci:{tmp_path}/mistyped", "UPSTREAM": "", "INDEX_DIR": "index"}.items():
        monkeypatch.setenv(f"NIXCACHE_{name}", value)
    assert main(arguments) == FAILED
    shown = capsys.readouterr()
    said = shown.out + shown.err
    assert "there is no cache at oci:" in said
    assert "mistyped" in said
    assert not [name for name in ("mistyped", "exported", "copy") if (tmp_path / name).exists()]
