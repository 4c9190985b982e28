"""What real Nix wrote (fixtures/make.sh), and strategies that make up the like."""

from pathlib import Path

from hypothesis import strategies as st

from nixcache_oci.nix import base32
from nixcache_oci.nix.nar import Directory, File, Node, Symlink
from nixcache_oci.nix.signature import PublicKey, SecretKey
from nixcache_oci.nix.store_path import HashPart, StorePath

FIXTURES = Path(__file__).parent / "fixtures"
NARINFOS = sorted((FIXTURES / "narinfo").glob("*.narinfo"))
KEY = PublicKey.parse((FIXTURES / "fixtures-1.pub").read_text())
SECOND_KEY = PublicKey.parse((FIXTURES / "second.pub").read_text())
SECRET_KEY = SecretKey.parse((FIXTURES / "fixtures-1.sec").read_text())

# The tree that fixtures/make.sh makes and dumps.
TREE = Directory(
    {
        b"empty dir": Directory({}),
        b"nested": Directory(
            {b"deep": Directory({b"Z": File(b"z"), b"a": File(b"a")}), b"A~nix~case~hack~1": File(b"case")}
        ),
        b"aligned": File(b"eight by"),
        b"executable": File(b"#!/bin/sh\n", executable=True),
        b"group-executable": File(b"group only"),
        b"empty": File(b""),
        b"dangling": Symlink(b"../nowhere"),
        "\N{LATIN SMALL LETTER E WITH ACUTE}".encode(): File(b"u"),
        b"\xe9": File(b"l"),
        b"new\nline": File(b"n"),
    }
)


def narinfo_text(name: str) -> str:
    """Read the one fixture whose object has this name."""
    (text,) = [text for path in NARINFOS if f"-{name}\n" in (text := path.read_text()).partition("URL")[0]]
    return text


hash_parts = st.binary(min_size=20, max_size=20).map(base32.encode).map(HashPart)
store_names = st.from_regex(r"[0-9A-Za-z+\-._?=]{1,211}", fullmatch=True).filter(
    lambda name: name.partition("-")[0] not in {".", ".."}
)
store_dirs = st.sampled_from(["/nix/store", "/home/user/nix/store", "/store"])
store_paths = st.builds(StorePath, store_dirs, hash_parts, store_names)

file_names = st.binary(min_size=1, max_size=20).filter(
    lambda name: name not in {b".", b".."} and b"/" not in name and b"\0" not in name
)
leaves = st.builds(File, st.binary(max_size=40), st.booleans()) | st.builds(
    Symlink, st.binary(min_size=1, max_size=20).filter(lambda target: b"\0" not in target)
)
trees: st.SearchStrategy[Node] = st.recursive(
    leaves, lambda nodes: st.builds(Directory, st.dictionaries(file_names, nodes, max_size=5)), max_leaves=12
)
