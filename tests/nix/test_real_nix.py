"""The formats, asked of the Nix that is installed."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from nixcache_oci.nix import base32
from nixcache_oci.nix.content_address import ContentAddress, Method, is_content_addressed
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import File, dump_tree
from nixcache_oci.nix.nar_files import dump, restore
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.nix.store_path import StorePath
from tests.nix.samples import TREE

pytestmark = pytest.mark.needs("nix")


class Nix:
    """The installed Nix with a home, settings and a chroot store of its own; /nix is left alone."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "root"
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "NIX_CONF_DIR": str(folder / "etc"),
            "NIX_CONFIG": "experimental-features = nix-command\nsubstitute = false\nbuild-users-group =",
        }

    def run(self, *command: str | Path, status: int = 0, **settings: str) -> bytes:
        """Run a program of Nix and give what it wrote to standard output."""
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in settings.items()]
        config = "\n".join([self._environment["NIX_CONFIG"], *lines])
        done = subprocess.run(
            command,
            env={**self._environment, "NIX_CONFIG": config},
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stderr.decode()
        return done.stdout

    def run_in_store(self, *command: str | Path) -> str:
        """Run ``nix-store`` on the store."""
        return self.run("nix-store", "--store", self.store, *command).decode().strip()


@pytest.fixture
def nix(tmp_path: Path) -> Nix:
    return Nix(tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    restore(dump_tree(TREE), tmp_path / "tree")
    return tmp_path / "tree"


def test_nix_spells_hashes_as_we_do(nix: Nix) -> None:
    """nix32 is read and written as Nix does."""
    digest = hashlib.sha256(b"hello").digest()
    text = nix.run("nix", "hash", "to-base32", "--type", "sha256", digest.hex()).decode().strip()
    assert base32.encode(digest) == text
    sri = nix.run("nix", "hash", "to-sri", "--type", "sha256", text).decode().strip()
    assert NixHash.parse(sri) == NixHash(digest)


def test_nix_dumps_as_we_do(nix: Nix, tree: Path) -> None:
    """The installed Nix, not only the one that made the fixtures."""
    assert nix.run("nix-store", "--dump", tree) == b"".join(dump(tree))


def test_nix_restores_what_we_dump(nix: Nix, tmp_path: Path) -> None:
    """Real Nix reads our NAR as the tree that it was made of."""
    nar = tmp_path / "tree.nar"
    nar.write_bytes(b"".join(dump_tree(TREE)))
    nix.run("sh", "-c", f"nix-store --restore {tmp_path}/restored < {nar}")
    assert b"".join(dump(tmp_path / "restored")) == nar.read_bytes()


def test_nix_adds_to_the_store_where_we_say(nix: Nix, tree: Path) -> None:
    """Paths of sources and fixed outputs follow from their contents as in Nix."""
    nar_hash = NixHash(hashlib.sha256(b"".join(dump(tree))).digest())
    contents = (tree / "aligned").read_bytes()
    flat = ContentAddress(Method.FLAT, NixHash(hashlib.sha1(contents).digest(), "sha1"))
    added = nix.run_in_store("--add", tree)
    assert added == str(ContentAddress(Method.NAR, nar_hash).store_path("tree", [], "/nix/store"))
    added = nix.run_in_store("--add-fixed", "sha1", tree / "aligned")
    assert added == str(flat.store_path("aligned", [], "/nix/store"))


def test_nix_takes_what_we_sign(nix: Nix, tmp_path: Path) -> None:
    """A cache of our narinfo and NAR satisfies a client that demands signatures, with a new key of ours."""
    cache = tmp_path / "cache"
    key = SecretKey.generate("ours-1")
    narinfo = _write_cache(cache, key)
    copy = ("nix", "copy", "--from", f"file://{cache}", "--to", nix.store, str(narinfo.store_path))
    nix.run(*copy, status=1, trusted_public_keys=str(SecretKey.generate("ours-1").public_key))
    nix.run(*copy, trusted_public_keys=str(key.public_key))
    assert b"".join(dump(Path(f"{nix.store}{narinfo.store_path}"))) == b"".join(dump_tree(TREE))


def _write_cache(cache: Path, key: SecretKey) -> NarInfo:
    """Write a binary cache of one object that refers to itself; its path follows from nothing."""
    nar = b"".join(dump_tree(TREE))
    path = StorePath.parse("/nix/store/wh95ph7yyj7a9gqziw85bhapwkb96vln-tree")
    plain = NarInfo(
        store_path=path,
        url="nar/tree.nar",
        compression="none",
        nar_hash=NixHash(hashlib.sha256(nar).digest()),
        nar_size=len(nar),
        references=(path.base_name,),
        extra=(("Unknown", "to Nix"),),
    )
    signed = NarInfo.parse(plain.render() + f"Sig: {key.sign(fingerprint(plain))}\n")
    (cache / "nar").mkdir(parents=True)
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (cache / signed.url).write_bytes(nar)
    (cache / f"{path.hash_part}.narinfo").write_text(signed.render())
    return signed


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("is_right", [True, False])
def test_nix_judges_an_address_by_the_path_and_then_by_the_bytes(
    nix: Nix, tmp_path: Path, method: Method, *, is_right: bool
) -> None:
    """Without a signature it unpacks whatever NarHash names, and then it stops."""
    nar, other = (b"".join(dump_tree(File(text))) for text in (b"right", b"wrong"))
    hashed = nar if method is Method.NAR else b"right"
    address = ContentAddress(method, NixHash(hashlib.sha256(hashed).digest()))
    served = nar if is_right else other
    narinfo = NarInfo(
        store_path=address.store_path("name", (), "/nix/store"),
        url="x.nar",
        compression="none",
        nar_hash=NixHash(hashlib.sha256(served).digest()),
        nar_size=len(served),
        ca=str(address),
    )
    cache = tmp_path / "binary-cache"
    cache.mkdir()
    (cache / "nix-cache-info").write_text("StoreDir: /nix/store\n")
    (cache / f"{narinfo.store_path.hash_part}.narinfo").write_text(narinfo.render())
    (cache / "x.nar").write_bytes(served)
    command = ("nix-store", "--store", nix.store, "--realise", str(narinfo.store_path))
    nix.run(*command, status=0 if is_right else 1, substitute="true", substituters=f"file://{cache}")
    assert is_content_addressed(narinfo) == (is_right and method is Method.NAR)
