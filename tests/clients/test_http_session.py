"""Sessions: what is logged of their requests, which certificates they trust, and how a URL is shown."""

import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from nixcache_oci.clients.http import session
from nixcache_oci.clients.http.url import show_url
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import RegistryError, UpstreamError
from nixcache_oci.oci.reference import RegistryReference
from tests.support.tls import Authority, make_authority
from tests.support.upstream_server import HASH_PART, answering, asking, narinfo_text, saying, serve, talk


async def test_each_request_is_logged_for_who_wants_it(caplog: pytest.LogCaptureFixture) -> None:
    """Method, URL and status; of a URL that may be signed, the origin alone, and no password of any."""
    async with serve(answering(status=404)) as url, session.open_session(aiohttp.TCPConnector()) as client:
        with caplog.at_level(logging.INFO):
            (await client.get(f"{url}/blobs/one")).release()
        assert not caplog.records
        named = url.replace("://", "://me:secret-word@")
        with caplog.at_level(logging.DEBUG, "nixcache_oci"):
            for asked in (f"{url}/blobs/one", f"{url}/blobs/one?sig=secret-word", f"{named}/blobs/one"):
                (await client.get(asked)).release()
    fields = [vars(record)["fields"] for record in caplog.records]
    assert [(one["method"], str(one["url"]), one["status"]) for one in fields] == [
        ("GET", f"{url}/blobs/one", 404),
        ("GET", url, 404),
        ("GET", f"{url}/blobs/one", 404),
    ]


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    session._read.cache_clear()
    yield make_authority(tmp_path)
    session._read.cache_clear()


_TAGS = answering(text='{"tags": ["a"]}')


async def _list_tags(url: str) -> list[str]:
    reference = RegistryReference.of(url, "o/n", "nix-cache")
    registry = Registry(reference, None, patience=1, attempts=1)
    try:
        return await registry.list_tags()
    finally:
        await registry.close()


async def test_upstreams_are_trusted_as_nix_trusts_them(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nix behind a company's proxy has one variable for its certificate, and so has whoever serves it."""
    narinfo = answering(text=narinfo_text())
    async with (
        serve(narinfo, "localhost", tls=authority.server) as url,
        serve(_TAGS, "localhost", tls=authority.server) as registry,
    ):
        async with asking(url) as upstreams:
            with pytest.raises(UpstreamError):
                await upstreams.find(HASH_PART)
        with pytest.raises(RegistryError, match="certificate of localhost is refused"):
            await _list_tags(registry)
        monkeypatch.setenv("NIX_SSL_CERT_FILE", str(authority.file))
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
        async with asking(url) as upstreams:
            assert await upstreams.find(HASH_PART) is not None
        assert await _list_tags(registry) == ["a"]


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_that_cannot_be_used_is_one_warning(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """In a pure nix-shell the variable names a file that is not there: that stops nobody; empty is unset."""
    session._read.cache_clear()
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    for text in ("", " ", str(path), str(path)):
        assert session.tls_context({"NIX_SSL_CERT_FILE": text}) is True
    assert ["NIX_SSL_CERT_FILE" in record.getMessage() for record in caplog.records] == [True]


def test_certificates_are_checked(authority: Authority) -> None:
    """More trust is never less checking."""
    context = session.tls_context({"NIX_SSL_CERT_FILE": str(authority.file)})
    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


async def test_a_registry_without_tls_is_told_at_once() -> None:
    """OpenSSL's number is no errno: the line says what is wrong, and how such a registry is written."""
    async with serve(_TAGS) as url:
        host = url.removeprefix("http://")
        with pytest.raises(RegistryError, match=f"does not speak TLS; .*is written http://{host}$") as raised:
            await _list_tags(f"https://{host}")
    assert not raised.value.is_temporary
    assert "not permitted" not in str(raised.value)


def _refusing(text: str) -> bytes:
    return b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text.encode())


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (_refusing("Client sent an HTTP request to an HTTPS server.\n"), "it speaks TLS: write"),
        (
            _refusing("<title>400 The plain HTTP request was sent to HTTPS port</title>"),
            "it speaks TLS: write",
        ),
        (
            _refusing("You're speaking plain HTTP to an SSL-enabled server port.<br />"),
            "it speaks TLS: write",
        ),
        (b"", "if it speaks TLS, write"),
        (bytes.fromhex("15030100020246"), "if it speaks TLS, write"),
        (_refusing('{"errors": [{"code": "NAME_INVALID", "message": "no"}]}'), None),
    ],
    ids=["Go", "nginx", "Apache", "hangs up", "answers in TLS", "another refusal"],
)
async def test_a_registry_that_wants_tls_is_told(answer: bytes, hint: str | None) -> None:
    """``localhost`` is taken for plain HTTP: only where it is not, the line says how to write it."""
    async with talk(saying(answer)) as url:
        host = url.removeprefix("http://")
        with pytest.raises(
            RegistryError, match=f"{hint} https://{host}$" if hint else "NAME_INVALID"
        ) as raised:
            await _list_tags(host)
    assert hint or "https" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:secret@h.example/x?X-Amz-Signature=secret#secret", "'https://h.example/x'"),
        ("//u:secret@h.example", "'//h.example'"),
        ("s3://bucket/x?secret", "'s3://bucket/x'"),
        ("https://a@b:secret@[::1/", "'https://[::1/'"),
        ("nar/x.nar?token=secret", "'nar/x.nar'"),
        ("?secret", "''"),
        ("a\nb", "'a\\nb'"),
        ("x" * 9000, repr("x" * 200)),
    ],
)
def test_nothing_secret_is_shown(text: str, shown: str) -> None:
    """Logs and the status page are read by others: no user, password or signed query, in one short line."""
    assert show_url(text) == shown
