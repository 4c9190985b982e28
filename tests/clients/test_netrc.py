"""Which user names and passwords of netrc files go to which upstream."""

import base64
import logging
import os
from pathlib import Path

import pytest

from nixcache_oci.clients.upstream.client import Upstreams
from nixcache_oci.clients.upstream.netrc import open_upstreams
from nixcache_oci.errors import UsageError
from tests.support.upstream_server import HASH_PART, Asked, answering, narinfo_text, serve

_URL = "https://cache.example/x"


def _basic(text: str) -> str:
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), "NIX_CONF_DIR": str(tmp_path / "etc"), **more}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("machine cache.example login me password pw\n", "me:pw"),
        ("machine cache.example\n  login me\n  password pw\n", "me:pw"),
        ("machine cache.example password pw\n", ":pw"),
        ("machine CACHE.example login me password pw\n", "me:pw"),
        ("# mine\nmachine other login a password b\nmachine cache.example login me password p#w\n", "me:p#w"),
        ("machine other login a password b\ndefault login any password one\n", "any:one"),
        ("machine other login a password b\n", ""),
        *(("machine cache.example.evil login a password b\n", ""), ("", "")),
    ],
)
def test_nixs_own_file_is_read(tmp_path: Path, content: str, expected: str) -> None:
    """An upstream that Nix may read, the proxy may read too, by the same file."""
    _write(tmp_path / "etc/netrc", content)
    [upstream] = open_upstreams([_URL], _environment(tmp_path))
    assert upstream.authorization == (_basic(expected) if expected else "")


@pytest.mark.parametrize("place", ["machine", "user", "variable", "NETRC", "home"])
def test_the_file_is_found(tmp_path: Path, place: str) -> None:
    """Where ``netrc-file`` says, which may stand in any of Nix's files; where NETRC says; at home."""
    home = place == "home"
    path = _write(
        tmp_path / ("home/.netrc" if home else "elsewhere"), "machine cache.example login me password pw\n"
    )
    more: dict[str, str] = {}
    line = f"netrc-file = {path}\n"
    match place:
        case "machine":
            _write(tmp_path / "etc/nix.conf", line)
        case "user":
            _write(tmp_path / "home/.config/nix/nix.conf", line)
        case "variable":
            more["NIX_CONFIG"] = line
        case "NETRC":
            more["NETRC"] = str(path)
    [upstream] = open_upstreams([_URL], _environment(tmp_path, **more))
    assert upstream.authorization == _basic("me:pw")


def test_what_is_nearer_counts(tmp_path: Path) -> None:
    """Credentials in the URL before any file, a named file before Nix's, and that before the user's own."""
    _write(tmp_path / "etc/netrc", "machine a login nix password 1\nmachine b login nix password 1\n")
    _write(tmp_path / "named", "machine a login named password 2\n")
    _write(tmp_path / "home/.netrc", "machine b login home password 3\ndefault login home password 4\n")
    urls = ["https://a", "https://b", "https://c", "https://url:5@a"]
    found = open_upstreams(urls, _environment(tmp_path, NETRC=str(tmp_path / "named")))
    expected = [_basic("named:2"), _basic("nix:1"), "", _basic("url:5")]
    assert [each.authorization for each in found] == expected


@pytest.mark.parametrize("kind", ["malformed", "folder", "binary", "forbidden", "huge"])
def test_a_file_that_cannot_be_read_is_one_warning(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service may not read what belongs to root, and public upstreams need none of it."""
    path = tmp_path / "etc/netrc"
    _write(path, "machine cache.example login me secret-word pw\n")
    match kind:
        case "folder":
            path.unlink()
            path.mkdir()
        case "binary":
            path.write_bytes(b"\xff\xfe\x00machine\n")
        case "huge":
            path.write_bytes(b"#" * (1024 * 1024 + 1))
        case "forbidden":
            path.chmod(0)
            if os.geteuid() == 0:

                def refuse(*_: object) -> None:
                    raise PermissionError(13, "Permission denied")

                monkeypatch.setattr("netrc.netrc.__init__", refuse)
    with caplog.at_level(logging.WARNING):
        [upstream] = open_upstreams([_URL], _environment(tmp_path))
    assert upstream.authorization == ""
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert "secret-word" not in caplog.text


def test_no_file_is_fine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Most machines have none, and a service no home. A SOCKS proxy is refused, before anything is served."""
    assert open_upstreams([_URL], {"NIX_CONF_DIR": str(tmp_path)})[0].authorization == ""
    assert not caplog.records
    with pytest.raises(UsageError, match="all_proxy names a proxy that speaks socks5"):
        open_upstreams([_URL], _environment(tmp_path, all_proxy="socks5://p:1"))


async def test_the_upstream_is_asked_with_them(tmp_path: Path) -> None:
    """What was found reaches the server that it is for, and no other that it redirects to."""
    first: list[Asked] = []
    then: list[Asked] = []
    _write(tmp_path / "etc/netrc", "machine 127.0.0.1 login me password pw\n")
    async with serve(answering(text=narinfo_text(), asked=then), "localhost") as storage:
        moved = answering(status=302, headers={"Location": storage}, asked=first)
        async with serve(moved) as url:
            upstreams = Upstreams(open_upstreams([url], _environment(tmp_path)))
            try:
                assert await upstreams.find(HASH_PART) is not None
            finally:
                await upstreams.close()
    assert [one.headers.get("Authorization") for one in first + then] == [_basic("me:pw"), None]
