"""Our entry in a netrc file, and everybody else's, which stays byte for byte."""

import netrc
import os
from pathlib import Path

import pytest

from nixcache_oci.clients.netrc_file import LOGIN, MOST_BYTES, is_password, put_entry, write_entry
from nixcache_oci.errors import Error, FormatError

HOST, PASSWORD = "cache.example", "p" * 20
OURS = f"machine {HOST} login {LOGIN} password {PASSWORD}\n"

OTHERS = """# mine
machine a.example
  login me   # no comment: a word of the entry is expected here
  password "with \\" space"

macdef init
machine cache.example login in-a-macro
password x

machine b.example login you password machine account 7
default login anonymous password x@y
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", OURS),
        (OURS, OURS),
        ("machine b.example login x password y", OURS + "machine b.example login x password y"),
        (f"machine CACHE.example\n\tlogin {LOGIN}\n\tpassword old\n", OURS),
        (f"# a\nmachine {HOST} login {LOGIN} password old  \n# b\n", OURS + "# a\n# b\n"),
        (f"machine {HOST} user {LOGIN} password old machine b password c", f"{OURS} machine b password c"),
        (f"machine {HOST} login {LOGIN} password machine\ndefault login a\n", OURS + "default login a\n"),
        (OURS + OURS, OURS),
        (f"machine sub.{HOST} login x password y\n", f"{OURS}machine sub.{HOST} login x password y\n"),
    ],
)
def test_our_entry_is_replaced_or_comes_first(before: str, after: str) -> None:
    """First, because programs read the first; nothing else moves."""
    assert put_entry(before, HOST, PASSWORD) == after


def test_others_stay(tmp_path: Path) -> None:
    """Comments, macros, quotes and the default among them, and programs read all as before."""
    others = OTHERS.replace("   # no comment: a word of the entry is expected here", "")
    text = put_entry(others, HOST, PASSWORD)
    assert text == OURS + others
    assert put_entry(text, HOST, "q" * 20) == text.replace(PASSWORD, "q" * 20)
    (tmp_path / "netrc").write_text(text)
    hosts = netrc.netrc(tmp_path / "netrc").hosts
    assert hosts[HOST] == (LOGIN, "", PASSWORD)
    assert {"a.example", "b.example", "default"} < hosts.keys()


@pytest.mark.parametrize(
    "text",
    [
        f"machine {HOST} login somebody password x",
        f"machine {HOST} password x",
        "machine",
        "machine a login",
        "hello",
        "#" * (MOST_BYTES + 1),
    ],
)
def test_what_cannot_be_kept_is_not_touched(text: str, tmp_path: Path) -> None:
    """Somebody else's password for the host, and what is no netrc file."""
    with pytest.raises(FormatError):
        put_entry(text, HOST, PASSWORD)
    file = tmp_path / "netrc"
    file.write_text(text)
    with pytest.raises(Error, match="another file with --file"):
        write_entry(file, HOST, PASSWORD)
    assert file.read_text() == text
    assert os.listdir(tmp_path) == ["netrc"]  # noqa: PTH208  names are meant


def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    """A new file, and one that others could read; a group may have to."""
    file = tmp_path / "new/netrc"
    write_entry(file, HOST, PASSWORD)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    for before, after in ((0o644, 0o640), (0o600, 0o600), (0o777, 0o770)):
        file.chmod(before)
        write_entry(file, HOST, PASSWORD)
        assert file.stat().st_mode & 0o777 == after & ~_umask() | 0o600


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_a_link_is_not_replaced(tmp_path: Path) -> None:
    """Something else makes that file, such as a secrets manager."""
    (tmp_path / "netrc").symlink_to("secrets")
    with pytest.raises(Error, match="is a link to secrets"):
        write_entry(tmp_path / "netrc", HOST, PASSWORD)


@pytest.mark.parametrize("text", ["", "a b", 'a"b', "a\\b", "#a", "ä", "a\nb"])
def test_passwords_that_programs_read_differently(text: str) -> None:
    """curl and Python disagree on quotes and backslashes."""
    assert not is_password(text)
    assert is_password("a#b!~-_=+/.")
