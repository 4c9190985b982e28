"""Pointing Nix at the proxy: the lines, and the file that they go into."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nixcache_oci.cli.main import main
from nixcache_oci.cli.nix_conf_file import find_nix_conf
from nixcache_oci.cli.verb import DONE, FAILED, WRONG_USAGE
from nixcache_oci.errors import UsageError
from nixcache_oci.nix.nix_conf import parse_conf
from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import put, settings_of
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.objects import store_object
from tests.support.proxy import ProxyProcess
from tests.support.registries import Ghcr
from tests.support.server_thread import listener
from tests.support.tls import make_authority

KEY = SecretKey.generate("use-1")
LINES = f"""\
extra-substituters = http://127.0.0.1:37515
extra-trusted-public-keys = {KEY.public_key}
fallback = true
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A nix.conf of root, and the cache's key."""
    for name in [name for name in os.environ if name.startswith("NIXCACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NIX_CONF_DIR", str(tmp_path / "etc"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("NIXCACHE_REGISTRY", f"oci:{tmp_path / 'cache'}")
    monkeypatch.setenv("NIXCACHE_INDEX_DIR", str(tmp_path / "index"))
    monkeypatch.setenv("NIXCACHE_PUBLIC_KEYS", str(KEY.public_key))
    path = tmp_path / "etc" / "nix.conf"
    path.parent.mkdir()
    return path


def apply(conf: Path, *arguments: str) -> int:
    return main(["use", "--apply", "--file", str(conf), *arguments])


def backups(conf: Path) -> list[Path]:
    return sorted(conf.parent.glob("nix.conf.backup-*"))


def test_the_lines_are_printed(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They alone are standard output, and nothing is written."""
    assert main(["use"]) == DONE
    assert capsys.readouterr().out == LINES
    assert list(conf.parent.iterdir()) == []


def test_a_new_file(conf: Path) -> None:
    """It is made with its folder, and readable by all; there is nothing to back up."""
    path = conf.parent / "new" / "nix.conf"
    assert apply(path) == DONE
    assert path.read_text().endswith(LINES)
    assert path.stat().st_mode & 0o7777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_completed_once(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mode and bytes stay, the backup is the file as it was, and a second run changes nothing and says so."""
    before = b"max-jobs = 2 # caf\xe9\r\naccess-tokens = github.com=secret"
    conf.write_bytes(before)
    conf.chmod(0o640)
    owner = 1234 if os.geteuid() == 0 else os.geteuid()
    os.chown(conf, owner, -1)
    assert apply(conf) == DONE
    after = conf.read_bytes()
    assert after.startswith(before + b"\r\n")
    assert (conf.stat().st_mode & 0o7777, conf.stat().st_uid) == (0o640, owner)
    (backup,) = backups(conf)
    assert backup.read_bytes() == before
    assert backup.stat().st_mode & 0o7777 == 0o640
    capsys.readouterr()
    assert apply(conf) == DONE
    assert "nothing to do" in capsys.readouterr().out
    assert conf.read_bytes() == after
    assert set(conf.parent.iterdir()) == {conf, backup}


def test_backups_are_kept(conf: Path) -> None:
    """Several within one second have names of their own."""
    conf.write_text("cores = 1\n")
    ports = ("1", "2", "3")
    for port in ports:
        assert apply(conf, "--port", port) == DONE
    assert len(backups(conf)) == len(ports)
    assert "cores = 1\n" in [path.read_text() for path in backups(conf)]


def test_a_link_is_left_alone(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On NixOS it leads into the store: the module is the way there."""
    target = conf.parent / "made"
    target.write_text("cores = 1\n")
    conf.symlink_to(target)
    assert apply(conf) == FAILED
    assert "services.nixcache-proxy" in capsys.readouterr().err
    assert conf.is_symlink()
    assert target.read_text() == "cores = 1\n"


@pytest.mark.parametrize(
    "line",
    ["fallback=true", f"trusted-public-keys = {SecretKey.generate('use-1').public_key}"],
    ids=["fallback", "trusted-public-keys"],
)
def test_what_is_in_the_way_is_named(conf: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    """The file stays as it is, without a backup."""
    conf.write_text(f"{line}\n")
    assert apply(conf) == FAILED
    assert f"{conf}: line 1" in capsys.readouterr().err
    assert conf.read_text() == f"{line}\n"
    assert list(conf.parent.iterdir()) == [conf]


def test_a_file_that_cannot_be_written(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason in one line, and nothing half-written beside it."""
    conf.mkdir()
    assert apply(conf) == FAILED
    assert f"{conf}: Is a directory" in capsys.readouterr().err
    assert apply(conf / "nix.conf") == DONE
    assert apply(conf / "nix.conf" / "below") == FAILED
    assert [path.name for path in conf.iterdir()] == ["nix.conf"]


def test_a_file_that_changes_meanwhile(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another program wrote between reading and writing is not lost."""

    def change(descriptor: int) -> None:
        del descriptor
        conf.write_text("cores = 2\n")

    conf.write_text("cores = 1\n")
    monkeypatch.setattr(os, "fsync", change)
    assert apply(conf) == FAILED
    assert conf.read_text() == "cores = 2\n"
    assert list(conf.parent.iterdir()) == [conf]


def test_which_file() -> None:
    """The machine's for root, else the user's own."""
    environment = {"HOME": "/home/bob"}
    assert find_nix_conf(environment, is_root=True) == Path("/etc/nix/nix.conf")
    assert find_nix_conf({"NIX_CONF_DIR": "/x"}, is_root=True) == Path("/x/nix.conf")
    assert find_nix_conf(environment, is_root=False) == Path("/home/bob/.config/nix/nix.conf")
    assert find_nix_conf({"XDG_CONFIG_HOME": "/c"}, is_root=False) == Path("/c/nix/nix.conf")
    with pytest.raises(UsageError, match=r"no home folder.*--file"):
        find_nix_conf({}, is_root=False)


@pytest.mark.usefixtures("conf")
@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (("--listen", "0.0.0.0"), "http://127.0.0.1:37515"),
        (("--listen", "::1", "--port", "80"), "http://[::1]:80"),
    ],
)
def test_where_the_proxy_is(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], url: str) -> None:
    """An address that one cannot connect to becomes one that one can."""
    assert main(["use", *arguments]) == DONE
    assert capsys.readouterr().out.startswith(f"extra-substituters = {url}\n")


@pytest.mark.parametrize(
    ("listen", "host"), [("0.0.0.0", "127.0.0.1"), ("localhost", "localhost"), ("10.0.0.1", "127.0.0.1")]
)
def test_a_proxy_over_https(conf: Path, capsys: pytest.CaptureFixture[str], listen: str, host: str) -> None:
    """Its address is one that its certificate is for."""
    chain = make_authority(conf.parent).chain
    assert main(["use", "--tls-cert", str(chain), "--listen", listen]) == DONE
    assert capsys.readouterr().out.startswith(f"extra-substituters = https://{host}:37515\n")


@pytest.mark.usefixtures("conf")
def test_a_certificate_that_is_none(conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The setting is named."""
    conf.write_text("no certificate")
    assert main(["use", "--tls-cert", str(conf)]) == WRONG_USAGE
    assert f"NIXCACHE_TLS_KEY: {conf}: expected a certificate in PEM" in capsys.readouterr().err


@pytest.mark.usefixtures("conf")
def test_a_free_port_is_not_known() -> None:
    """Port 0 is whatever the proxy was given."""
    assert main(["use", "--port", "0"]) == WRONG_USAGE


def test_without_any_key(
    conf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written where nobody tells the key."""
    monkeypatch.delenv("NIXCACHE_PUBLIC_KEYS")
    assert apply(conf, "--port", "1") == FAILED
    assert "there is no cache at oci:" in capsys.readouterr().err
    assert not conf.exists()


class Unverified:
    """A proxy that names a key which nobody here configured, as whoever took its port could."""

    def __init__(self, url: str, settings: dict[str, str]) -> None:
        self.port = url.rpartition(":")[2]
        self.url = url
        self.settings = settings


@pytest.fixture
def unverified(
    conf: Path, ghcr: Ghcr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Unverified]:
    del conf
    put(ghcr, [store_object("a")], [KEY])
    monkeypatch.delenv("NIXCACHE_PUBLIC_KEYS")
    settings = settings_of(ghcr, tmp_path)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        yield Unverified(proxy.url, settings)


def test_nothing_that_the_proxy_names_is_written(
    conf: Path, unverified: Unverified, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any user may hold the port: without a configured key and without a terminal, no byte is written."""
    for before in (None, "cores = 1\n"):
        if before is not None:
            conf.write_text(before)
        assert apply(conf, "--port", unverified.port) == FAILED
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert f"{unverified.url} names {KEY.public_key}" in line
        assert "--public-key" in line
        assert (conf.read_text() if conf.exists() else None) == before
    assert list(conf.parent.iterdir()) == [conf]


def test_nothing_that_the_cache_names_is_written(
    conf: Path, unverified: Unverified, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who may push to the registry may record any key: the same holds of the cache itself."""
    del unverified
    assert apply(conf, "--port", "1") == FAILED
    assert str(KEY.public_key) in capsys.readouterr().err
    assert not conf.exists()


@pytest.mark.parametrize("option", ["--public-key", "--public-keys"])
def test_a_given_key_is_written(
    conf: Path, unverified: Unverified, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """What is configured counts, and where the proxy hands out another, that is said and not followed."""
    other = SecretKey.generate("use-2").public_key
    assert apply(conf, "--port", unverified.port, option, str(other)) == DONE
    assert f"extra-trusted-public-keys = {other}\n" in conf.read_text()
    assert str(KEY.public_key) not in conf.read_text()
    assert f"hands out {KEY.public_key}, which is not configured" in capsys.readouterr().err


@pytest.mark.usefixtures("conf")
def test_what_is_printed_of_an_unverified_key(
    unverified: Unverified, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that are redirected into nix.conf trust nobody: the key is a comment, marked as not verified."""
    assert main(["use", "--port", unverified.port]) == DONE
    text = capsys.readouterr().out
    assert f"#extra-trusted-public-keys = {KEY.public_key}\n" in text
    assert "# Not verified" in text
    assert {one.name for one in parse_conf(text)} == {"substituters", "fallback"}


@pytest.mark.parametrize(
    ("answer", "status"), [("y\n", DONE), ("\n", FAILED), ("no\n", FAILED), ("\x04", FAILED)]
)
def test_a_terminal_is_asked(conf: Path, unverified: Unverified, answer: str, status: int) -> None:
    """The key is shown, and only a yes trusts it; an empty answer and the end of input are none."""
    controller, terminal = os.openpty()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "nixcache_oci",
            "use",
            "--apply",
            "--file",
            str(conf),
            "--port",
            unverified.port,
        ],
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    ) as process:
        os.close(terminal)
        with os.fdopen(controller, "r+b", buffering=0) as screen:
            seen = b""
            while not seen.endswith(b"[y/N] "):
                seen += screen.read(1)
            assert str(KEY.public_key).encode() in seen
            assert not conf.exists()
            screen.write(answer.encode())
            assert process.wait(timeout=60) == status
    assert conf.exists() == (status == DONE)
    if status == DONE:
        assert f"extra-trusted-public-keys = {KEY.public_key}\n" in conf.read_text()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([str(SecretKey.generate(f"k-{number}").public_key) for number in range(9)], "too many to compare"),
        ([str(SecretKey("с-1", bytes(32)).public_key)], "cannot be compared"),  # noqa: RUF001  Cyrillic is the point
        ([str(SecretKey("c\u202e1", bytes(32)).public_key)], "cannot be compared"),
        ([str(SecretKey.generate("c" * 200).public_key)], "cannot be compared"),
        (["nonsense"], "public key"),
    ],
)
@pytest.mark.usefixtures("conf")
def test_a_key_that_nobody_could_compare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keys: list[str], reason: str
) -> None:
    """What a listener names is shown whole and in plain letters, or not offered at all."""
    monkeypatch.delenv("NIXCACHE_PUBLIC_KEYS")
    with listener({"/public-key": "\n".join(keys)}) as url:
        port = url.rpartition(":")[2]
        for arguments in (["use"], ["use", "--apply"]):
            assert main([*arguments, "--port", port]) == FAILED
            said = capsys.readouterr()
            assert said.out == ""
            assert reason in said.err
            assert said.err.isascii()


@pytest.mark.needs("nix")
def test_nix_substitutes_by_it(
    conf: Path, ghcr: Ghcr, nix: NixSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the file tells Nix of the cache, and it takes signed paths through the proxy."""
    paths = nix.build_paths(5)
    put(ghcr, read_objects(nix, paths), [KEY])
    monkeypatch.delenv("NIXCACHE_PUBLIC_KEYS")
    monkeypatch.delenv("NIXCACHE_REGISTRY")
    # The other substituters of a machine, of which a test has none.
    conf.write_text("substituters =\nsubstitute = true\n")
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        port = proxy.url.rpartition(":")[2]
        assert apply(conf, "--port", port, "--public-key", str(KEY.public_key)) == DONE
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "NIX_CONF_DIR": str(conf.parent),
        }
        run = nix.run("nix-store", "-r", *paths, store=nix.new_store(), environment=environment).check()
    assert all(nix.physical(path, run.store).exists() for path in paths)


OTHER_KEY = SecretKey.generate("other-1")


def several(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure two caches, each with its key."""
    monkeypatch.delenv("NIXCACHE_REGISTRY")
    monkeypatch.setenv("NIXCACHE_REPO", "owner/a")
    file = conf.parent / "caches.toml"
    file.write_text(f'[[cache]]\nrepo = "owner/b"\npublic-keys = ["{OTHER_KEY.public_key}"]\n')
    monkeypatch.setenv("NIXCACHE_CACHES_FILE", str(file))


def test_the_lines_are_for_all_caches(
    conf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One substituter, and the keys of all; another with one cache's alone."""
    several(conf, monkeypatch)
    assert main(["use"]) == DONE
    both = f"extra-trusted-public-keys = {KEY.public_key} {OTHER_KEY.public_key}\n"
    assert capsys.readouterr().out.splitlines(keepends=True)[:2] == [LINES.splitlines(keepends=True)[0], both]
    assert apply(conf, "--cache", "owner/B") == DONE
    assert (
        LINES.replace("37515", "37515/owner/b").replace(str(KEY.public_key), str(OTHER_KEY.public_key))
        in conf.read_text()
    )


def test_a_cache_that_is_not_configured_needs_its_own_key(
    conf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are configured are other caches'; what cannot be a prefix is wrong usage."""
    several(conf, monkeypatch)
    monkeypatch.setenv("NIXCACHE_PORT", "9")
    assert main(["use", "--cache", "owner/c"]) == FAILED
    key = str(SecretKey.generate("c-1").public_key)
    assert main(["use", "--cache", "owner/c", "--public-key", key]) == DONE
    out = capsys.readouterr().out
    assert f"extra-trusted-public-keys = {key}\n" in out
    assert "extra-substituters = http://127.0.0.1:9/owner/c\n" in out
    assert main(["use", "--cache", "owner/.."]) == WRONG_USAGE


def test_a_cache_without_a_key_is_named(
    conf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nix would refuse what comes out of it, and nobody would know why."""
    several(conf, monkeypatch)
    monkeypatch.delenv("NIXCACHE_PUBLIC_KEYS")
    assert main(["use"]) == DONE
    assert "no key is configured for owner/a" in capsys.readouterr().err
