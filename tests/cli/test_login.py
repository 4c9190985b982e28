"""The verb ``login``, with real proxies, and a job at GitHub that asks a real issuer."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from nixcache_oci.cli.login import _find_netrc
from nixcache_oci.clients.netrc_file import LOGIN
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from tests.support.issuer import AUDIENCE, Issuer, rule, running_issuer
from tests.support.nix import NixSandbox
from tests.support.server_thread import listener
from tests.support.tls import make_authority
from tests.support.uploads import TOKEN, UploadProxy
from tests.support.writers import oidc_proxy, tls_proxy


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadProxy]:
    with oidc_proxy(tmp_path_factory.mktemp("oidc"), issuer) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    return str(file)


def _environment(home: Path, conf: str) -> dict[str, str]:
    (home / "etc").mkdir(exist_ok=True)
    (home / "etc/nix.conf").write_text(conf)
    return {"PATH": os.environ["PATH"], "HOME": str(home), "NIX_CONF_DIR": str(home / "etc")}


def login(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**_environment(home, f"netrc-file = {home}/netrc"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "nixcache_oci", "login", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_token_is_tested_and_written(proxy: UploadProxy, tmp_path: Path, token_file: str) -> None:
    """Into the file that nix.conf names, or that is named here."""
    done = login(tmp_path, proxy.url, "--token-file", token_file)
    assert (done.returncode, done.stderr) == (0, "")
    file = tmp_path / "netrc"
    assert done.stdout == f"{file}: {proxy.url} takes uploads as token builder\n"
    assert file.read_text() == f"machine 127.0.0.1 login {LOGIN} password {TOKEN}\n"
    done = login(tmp_path, proxy.url, "--token-file", token_file, "--file", str(tmp_path / "other"))
    assert f"call it with --netrc-file {tmp_path / 'other'}" in done.stderr
    assert (tmp_path / "other").read_text() == file.read_text()


@pytest.mark.parametrize(
    ("user", "conf", "given", "path", "is_read"),
    [
        (0, "", None, "etc/netrc", True),
        (1000, "", None, ".config/nix/netrc", False),
        (1000, "netrc-file = {home}/named", None, "named", True),
        (0, "netrc-file = {home}/named", "other", "other", False),
        (1000, "netrc-file = {home}/named", "named", "named", True),
    ],
)
def test_the_file_is_the_one_that_nix_reads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    conf: str,
    given: str | None,
    path: str,
    *,
    is_read: bool,
) -> None:
    """Only root may write the machine's; a user's own has to be made known."""
    monkeypatch.setattr("os.geteuid", lambda: user)
    environment = _environment(tmp_path, conf.format(home=tmp_path))
    found = _find_netrc(tmp_path / given if given is not None else None, environment)
    assert found == (tmp_path / path, is_read)


def test_a_job_exchanges_its_token(proxy: UploadProxy, issuer: Issuer, tmp_path: Path) -> None:
    """For the audience that is asked for; the password is hidden in the job's log, and lets upload."""
    issuer.claims = {"repository_id": "42"}
    environment = {**issuer.job, "GITHUB_ACTIONS": "true"}
    done = login(tmp_path, proxy.url, "--oidc", AUDIENCE, **environment)
    assert done.returncode == 0, done.stderr
    assert issuer.audiences[-1] == AUDIENCE
    [password] = (tmp_path / "netrc").read_text().split()[-1:]
    assert done.stderr == f"::add-mask::{password}\n"
    assert "takes uploads as oidc ci, until 20" in done.stdout
    assert proxy.put("/nix-cache-info", b"x", {"Authorization": f"Bearer {password}"}).status == 200


def test_refusals_are_one_line_and_change_nothing(proxy: UploadProxy, issuer: Issuer, tmp_path: Path) -> None:
    """Each says what to do, or which rule was missed."""
    file = tmp_path / "netrc"
    before = "machine other.example login me password x\n"
    file.write_text(before)
    (tmp_path / "wrong").write_text("wrong-token-of-somebody")
    (tmp_path / "odd").write_text('with a space"')
    (tmp_path / "right").write_text(TOKEN)
    wrong, right = ("--token-file", str(tmp_path / "wrong")), ("--token-file", str(tmp_path / "right"))
    oidc = ("--oidc", AUDIENCE)
    issuer.claims = {"repository_id": "43"}
    refused = f"{proxy.url} refused: "
    with listener({"/health": "ok"}) as stranger:
        for arguments, environment, status, text in [
            ((proxy.url, *wrong), {}, 1, f"{refused}the token is not one that may upload"),
            ((proxy.url, *oidc), issuer.job, 1, "its claim repository_id does not match"),
            ((proxy.url, "--oidc", "other"), issuer.job, 1, "it was made for another audience"),
            ((proxy.url, *oidc), {}, 2, "permission id-token: write"),
            (
                (proxy.url, *oidc),
                {**issuer.job, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x"},
                1,
                "GitHub gives no token",
            ),
            ((stranger, *right), {}, 1, "answered 404: expected a nixcache-oci proxy that takes uploads"),
            (("http://127.0.0.1:1", *right), {}, 1, "http://127.0.0.1:1: "),
            (("ftp://x", *right), {}, 2, "URL: expected http[s]://host[:port]"),
            (("http://user:secret@x", *right), {}, 2, "URL: expected http[s]://host[:port]"),
            ((proxy.url, "--token-file", str(tmp_path / "odd")), {}, 2, "expected one token on one line"),
            ((proxy.url, "--token-file", "/nowhere"), {}, 2, "--token-file: /nowhere: No such file"),
            ((proxy.url,), {}, 2, "one of the arguments --token-file --oidc is required"),
        ]:
            done = login(tmp_path, *arguments, **environment)
            assert (done.returncode, done.stdout) == (status, ""), done.stderr
            assert text in done.stderr
            assert "secret" not in done.stderr
            assert done.stderr.count("\n") == (2 if "usage: see" in done.stderr else 1)
            assert file.read_text() == before


def test_over_http_the_password_can_be_seen(tmp_path: Path, token_file: str) -> None:
    """On a network; it says so, and goes on."""
    done = login(tmp_path, "http://cache.invalid:1", "--token-file", token_file)
    assert "whoever sees the network's traffic sees the password" in done.stderr


@pytest.mark.needs("nix")
def test_nix_uploads_after_a_login(nix: NixSandbox, issuer: Issuer, tmp_path: Path, token_file: str) -> None:
    """Over HTTPS, with a token, and with what a job's token became."""
    authority = make_authority(tmp_path)
    environment: Mapping[str, str] = {"NIX_SSL_CERT_FILE": str(authority.file)}
    issuer.claims = {"repository_id": "42"}
    (tmp_path / "rules").write_text(rule(issuer.url))
    with tls_proxy(tmp_path, authority, NIXCACHE_OIDC_FILE=str(tmp_path / "rules")) as proxy:
        for number, way in enumerate((("--token-file", token_file), ("--oidc", AUDIENCE))):
            file = tmp_path / f"netrc-{number}"
            done = login(tmp_path, proxy.url, *way, "--file", str(file), **environment, **issuer.job)
            assert done.returncode == 0, done.stderr
            path = nix.build_file(f"uploaded-{number}", b"x")
            options = nix.environment(options={"netrc-file": str(file)})
            nix.run("nix", "copy", "--to", proxy.url, path, environment={**options, **environment}).check()
            part = Path(path).name.partition("-")[0]
            narinfo = NarInfo.parse(proxy.send("GET", f"/{part}.narinfo", {}).body)
            content = proxy.send("GET", f"/{narinfo.url}", {}).body
            assert narinfo.file_hash == NixHash(hashlib.sha256(content).digest())
