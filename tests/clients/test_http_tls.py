"""Which certificates are trusted, by real servers over TLS."""

import asyncio
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from nixcache_oci.clients.http import session
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.errors import RegistryError, UpstreamError
from nixcache_oci.oci.reference import RegistryReference
from tests.support.tls import Authority, make_authority
from tests.support.upstream_server import HASH_PART, Talk, asking, narinfo_text, serve, talk


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    session._read.cache_clear()
    yield make_authority(tmp_path)
    session._read.cache_clear()


async def _narinfo(_request: web.Request) -> web.Response:
    return web.Response(text=narinfo_text())


async def _tags(_request: web.Request) -> web.Response:
    return web.json_response({"tags": ["a"]})


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
    async with serve(_narinfo, "localhost", tls=authority.server) as url:
        async with asking(url) as upstreams:
            with pytest.raises(UpstreamError):
                await upstreams.find(HASH_PART)
        monkeypatch.setenv("NIX_SSL_CERT_FILE", str(authority.file))
        monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
        async with asking(url) as upstreams:
            assert await upstreams.find(HASH_PART) is not None


async def test_the_registry_is_trusted_by_the_same_variable(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One context for whatever is spoken to over TLS."""
    async with serve(_tags, "localhost", tls=authority.server) as url:
        origin = str(URL(url).origin())
        with pytest.raises(RegistryError, match="certificate of localhost is refused"):
            await _list_tags(origin)
        monkeypatch.setenv("NIX_SSL_CERT_FILE", str(authority.file))
        assert await _list_tags(origin) == ["a"]


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_that_cannot_be_used_is_one_warning(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """In a pure nix-shell the variable names a file that is not there: that stops nobody, and is said."""
    session._read.cache_clear()
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert session.tls_context({"NIX_SSL_CERT_FILE": str(path)}) is True
        assert session.tls_context({"NIX_SSL_CERT_FILE": str(path)}) is True
    assert len(caplog.records) == 1
    assert "NIX_SSL_CERT_FILE" in caplog.text


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_variable_is_none(text: str) -> None:
    """Unset secrets and options reach a service as empty variables."""
    assert session.tls_context({"NIX_SSL_CERT_FILE": text}) is True


def test_certificates_are_checked(authority: Authority) -> None:
    """More trust is never less checking."""
    context = session.tls_context({"NIX_SSL_CERT_FILE": str(authority.file)})
    assert isinstance(context, ssl.SSLContext)
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


async def test_a_registry_without_tls_is_told_at_once() -> None:
    """OpenSSL's number is no errno: the line says what is wrong, and how such a registry is written."""
    async with serve(_tags) as url:
        host = url.removeprefix("http://")
        with pytest.raises(RegistryError, match=f"does not speak TLS; .*is written http://{host}$") as raised:
            await _list_tags(f"https://{host}")
    assert not raised.value.is_temporary
    assert "not permitted" not in str(raised.value)


async def _hang_up(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def _alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(bytes.fromhex("15030100020246"))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, "Client sent an HTTP request to an HTTPS server.\n"),
        (400, "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>"),
        (400, "Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />"),
    ],
)
async def test_a_registry_that_wants_tls_is_told(status: int, body: str) -> None:
    """``localhost`` is taken for plain HTTP: where it is not, the line says how to write it."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with serve(answer) as url:
        host = url.removeprefix("http://")
        with pytest.raises(RegistryError, match=f"it speaks TLS: write https://{host}$"):
            await _list_tags(host)


@pytest.mark.parametrize("conversation", [_hang_up, _alert])
async def test_a_registry_that_may_want_tls_is_told(conversation: Talk) -> None:
    """Other servers answer in TLS, or hang up."""
    async with talk(conversation) as url:
        host = url.removeprefix("http://")
        with pytest.raises(RegistryError, match=f"if it speaks TLS, write https://{host}$"):
            await _list_tags(host)


async def test_a_refusal_that_has_nothing_to_do_with_tls_has_no_such_hint() -> None:
    """A wrong remedy costs more time than none."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"errors": [{"code": "NAME_INVALID", "message": "no"}]}, status=400)

    async with serve(answer) as url:
        with pytest.raises(RegistryError) as raised:
            await _list_tags(url)
    assert "https" not in str(raised.value)
