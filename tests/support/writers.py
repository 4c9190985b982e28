"""A proxy that knows every way to say who writes, and requests to it with certificates."""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nixcache_oci.nix.signature import SecretKey
from tests.support.issuer import Issuer, rule
from tests.support.proxy import Answer
from tests.support.tls import Authority
from tests.support.uploads import UploadProxy, upload_settings

KEY = SecretKey.generate("uploads-1")
HEADER = "X-Client-Subject"


class TlsProxy(UploadProxy):
    """One that speaks HTTPS, which clients trust who know ``authority``."""

    authority: Authority

    def send(self, method: str, path: str, headers: Mapping[str, str], client: Path | None = None) -> Answer:
        """Send a request, with a client certificate or without."""
        return send(urlsplit(self.url).netloc, self.authority, method, path, headers, client)


def send(
    address: str,
    authority: Authority,
    method: str,
    path: str,
    headers: Mapping[str, str],
    client: Path | None = None,
) -> Answer:
    """Send a request over HTTPS."""
    connection = http.client.HTTPSConnection(address, timeout=30, context=context(authority, client))
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    finally:
        connection.close()


def context(authority: Authority, client: Path | None = None) -> ssl.SSLContext:
    """Trust an authority, and show a certificate."""
    made = ssl.create_default_context(cafile=str(authority.file))
    if client is not None:
        made.load_cert_chain(client)
    return made


@contextmanager
def oidc_proxy(folder: Path, issuer: Issuer, **more: str) -> Iterator[UploadProxy]:
    """Run a proxy over HTTP that takes tokens, the issuer's JSON Web Tokens, and nginx's header."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = folder / "rules.toml"
    rules.write_text(rule(issuer.url))
    settings = {
        **upload_settings(folder / "cache", KEY),
        "NIXCACHE_OIDC_FILE": str(rules),
        "NIXCACHE_UPLOAD_CERT_HEADER": HEADER,
        "NIXCACHE_UPLOAD_SUBJECTS": "CN=builder-*; CN=someone,O=Example",
        **more,
    }
    with UploadProxy(folder / "proxy", **settings) as proxy:
        yield proxy


@contextmanager
def tls_proxy(folder: Path, authority: Authority, **more: str) -> Iterator[TlsProxy]:
    """Run a proxy over HTTPS that takes tokens and client certificates."""
    settings = {
        **upload_settings(folder / "cache", KEY),
        "NIXCACHE_TLS_CERT": str(authority.chain),
        "NIXCACHE_TLS_KEY": str(authority.chain),
        "NIXCACHE_TLS_CLIENT_CA": str(authority.file),
        "NIXCACHE_UPLOAD_SUBJECTS": "CN=builder-*",
        **more,
    }
    proxy = TlsProxy(folder / "proxy", **settings)
    proxy.authority = authority
    with proxy:
        yield proxy


def password_of(answer: Answer) -> str:
    """The password that /_login gave."""
    document: dict[str, Any] = json.loads(answer.body)
    password = document["password"]
    assert isinstance(password, str)
    return password
