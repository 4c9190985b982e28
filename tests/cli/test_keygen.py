"""Keys: made once, secret, and never overwritten."""

from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.nix.signature import PublicKey, SecretKey, fingerprint
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects


def test_the_pair_belongs_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The printed key is the public half, and the secret one is nobody else's to read."""
    assert main(["keygen", "my-cache-1", "--directory", str(tmp_path)]) == 0
    printed = PublicKey.parse(capsys.readouterr().out)
    secret = tmp_path / "my-cache-1.sec"
    assert SecretKey.parse(secret.read_text()).public_key == printed
    assert PublicKey.parse((tmp_path / "my-cache-1.pub").read_text()) == printed
    assert secret.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("existing", ["my-cache-1.sec", "my-cache-1.pub"])
def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str], existing: str) -> None:
    """A lost secret key is a new key for every client; and half a pair is not left behind."""
    (tmp_path / existing).write_text("precious")
    assert main(["keygen", "my-cache-1", "--directory", str(tmp_path)]) == 1
    assert existing in capsys.readouterr().err
    assert (tmp_path / existing).read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("", "a:b", "a b", "../a", ".hidden", "a#1", "#a", "a\n", "a&b", "a?b", "a=b", "a,b"),
        '"a"',
        "a%20b",
        "caf\u00e9",
        "x" * 201,
    ],
)
def test_names_that_nix_cannot_use_are_refused(tmp_path: Path, name: str) -> None:
    """Wrong usage, and no file."""
    assert main(["keygen", name, "--directory", str(tmp_path)]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next try must not find a file in its way that is no key."""

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fchmod", refuse)
    assert main(["keygen", "a-1", "--directory", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == f"nixcache-oci: error: {tmp_path}/a-1.sec: No space left on device\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("nix")
def test_nix_signs_with_it(tmp_path: Path) -> None:
    """What Nix signs with our key verifies with our public key: the file's form is Nix's own."""
    assert main(["keygen", "my-cache-1", "--directory", str(tmp_path)]) == 0
    nix = NixSandbox(tmp_path / "nix")
    [path] = nix.build_paths(1)
    nix.sign([path], tmp_path / "my-cache-1.sec")
    [one] = read_objects(nix, [path])
    [signature] = one.narinfo.sigs
    public_key = PublicKey.parse((tmp_path / "my-cache-1.pub").read_text())
    assert public_key.verify(fingerprint(one.narinfo), signature)
