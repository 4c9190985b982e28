"""Who may upload, asked of the real proxy: over HTTP, over HTTPS, and by JSON Web Token."""

import asyncio
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from nixcache_oci.clients.http.url import basic_authorization
from tests.support.issuer import Issuer, running_issuer
from tests.support.nginx import nginx_server
from tests.support.objects import store_object
from tests.support.programs import require_program
from tests.support.tls import Authority, make_authority
from tests.support.uploads import BEARER, TOKEN, Sent, UploadProxy, upload_settings
from tests.support.writers import HEADER, TlsProxy, context, oidc_proxy, password_of, send, tls_proxy

RIGHT = {"repository_id": "42"}
PROBE = "/nix-cache-info"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer() as running:
        yield running


@pytest.fixture(scope="module")
def proxy(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadProxy]:
    with oidc_proxy(tmp_path_factory.mktemp("oidc"), issuer) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secure(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsProxy]:
    with tls_proxy(tmp_path_factory.mktemp("tls"), authority) as running:
        yield running


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(password: str) -> dict[str, str]:
    return {"Authorization": basic_authorization("any", password)}


def log_in(proxy: UploadProxy, headers: Mapping[str, str]) -> tuple[int, bytes]:
    answer = proxy.ask("/_login", method="POST", headers=headers)
    return answer.status, answer.body


def test_a_token_of_ci_becomes_a_password(proxy: UploadProxy, issuer: Issuer) -> None:
    """Nix sends Basic only; a token itself lets upload, too, and both are named in the log."""
    answer = proxy.ask("/_login", method="POST", headers=bearer(issuer.sign(RIGHT)))
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    password = password_of(answer)
    sent = Sent.of(store_object("of-ci"))
    for headers in (basic(password), bearer(issuer.sign(RIGHT)), basic(issuer.sign(RIGHT))):
        assert proxy.put(f"/{sent.narinfo.url}", sent.content, headers).status == 200
    assert proxy.put(sent.path, sent.narinfo.render().encode(), basic(password)).status == 200
    status, body = log_in(proxy, basic(password))
    told = json.loads(body)
    assert (status, told["writer"], told["password"]) == (200, "oidc ci", None)
    assert told["expires_at"] > time.time()
    assert 'event="logged in" writer="oidc ci" sub=repo:octocat/hello' in proxy.log
    assert "event=uploaded" in proxy.log
    assert password not in proxy.log


def test_a_login_by_token_gives_no_password(proxy: UploadProxy) -> None:
    """It says whose it is."""
    assert log_in(proxy, basic(TOKEN)) == (
        200,
        b'{"writer": "token builder", "expires_at": null, "password": null}',
    )


def test_refusals_name_the_rule(proxy: UploadProxy, issuer: Issuer) -> None:
    """One line for each, at an upload as at a login; nothing of what was expected is in it."""
    password = password_of(proxy.ask("/_login", method="POST", headers=bearer(issuer.sign(RIGHT))))
    token = "the JSON Web Token does not let upload: "
    for headers, status, text in [
        (
            {},
            401,
            "uploads need a client certificate, or a password from nixcache-oci login",
        ),
        (basic("x" * 20), 403, "the token is not one that may upload"),
        (basic(f"{password}x"), 403, "the session has ended, or never was: log in again"),
        (basic("session-"), 403, "the session has ended, or never was: log in again"),
        ({"Authorization": "Basic !"}, 403, "Authorization is neither Basic nor Bearer, or malformed"),
        (bearer(issuer.sign({**RIGHT, "exp": 1})), 403, f"{token}it has expired"),
        (bearer(issuer.sign({**RIGHT, "aud": "x"})), 403, f"{token}it was made for another audience"),
        (bearer(issuer.sign({"repository_id": "7"})), 403, f"{token}its claim repository_id does not match"),
        (
            bearer(issuer.sign(RIGHT, key="", algorithm="none")),
            403,
            f"{token}it is not signed by RS256 or ES256",
        ),
        ({HEADER: "CN=reader"}, 403, "the subject of the client certificate is not one that may upload"),
        ({**bearer(issuer.sign(RIGHT)), "Origin": proxy.url}, 403, "a web page must not upload"),
        ({**bearer(issuer.sign(RIGHT)), "Sec-Fetch-Site": "none"}, 403, "a web page must not upload"),
    ]:
        assert log_in(proxy, headers) == (status, f"{text}\n".encode())
        answer = proxy.put(PROBE, b"x", headers)
        assert (answer.status, answer.body) == (status, f"{text}\n".encode())


def test_a_flood_of_unknown_keys(proxy: UploadProxy, issuer: Issuer) -> None:
    """The issuer is asked once, and the next token is taken."""
    log_in(proxy, bearer(issuer.sign(RIGHT)))
    before = issuer.fetches
    for number in range(200):
        assert log_in(proxy, bearer(issuer.sign(RIGHT, kid=f"unknown-{number}")))[0] == 403
    assert issuer.fetches - before <= 1
    assert log_in(proxy, bearer(issuer.sign(RIGHT)))[0] == 200


def test_a_web_server_here_hands_over_the_subject(proxy: UploadProxy) -> None:
    """Once, and with a subject that may; without a subject, its client has no certificate."""
    assert log_in(proxy, {HEADER: "CN=builder-01"})[1].startswith(b'{"writer": "certificate CN=builder-01"')
    assert log_in(proxy, {HEADER: "CN=someone,O=Example"})[0] == 200
    assert log_in(proxy, {HEADER: "CN=builder-01,O=x"})[0] == 403
    assert log_in(proxy, {HEADER: ""})[0] == 401
    twice = f"POST /_login HTTP/1.1\r\nHost: {proxy.host}\r\n" + f"{HEADER}: CN=builder-01\r\n" * 2 + "\r\n"
    with _connect(proxy) as client:
        client.sendall(twice.encode())
        assert client.recv(2**16).startswith(b"HTTP/1.1 401")


def test_the_header_counts_only_from_this_machine(proxy: UploadProxy) -> None:
    """Over the network anybody could send it; here a client comes from an address of the network."""
    addresses = [
        one.address for each in psutil.net_if_addrs().values() for one in each if one.family == socket.AF_INET
    ]
    outside = [address for address in addresses if not address.startswith("127.")]
    if not outside:
        pytest.skip("this machine has only loopback")
    for source, status in (("127.0.0.1", 200), (outside[0], 401)):
        connection = http.client.HTTPConnection(proxy.host, timeout=30, source_address=(source, 0))
        connection.request("POST", "/_login", headers={HEADER: "CN=builder-01"})
        assert connection.getresponse().status == status
        connection.close()


@pytest.mark.needs("nginx")
async def test_nginx_checks_certificates(proxy: UploadProxy, authority: Authority, tmp_path: Path) -> None:
    """As docs/uploads.md sets it up: what a client claims itself is replaced by what nginx found out."""
    page = Path(__file__).parents[2] / "docs/uploads.md"
    server = page.read_text().partition("```nginx\n")[2].partition("```")[0]
    server = server.replace("/etc/nginx/builders-ca.pem", str(authority.file))
    server = server.replace("http://127.0.0.1:37515", proxy.url)
    server += (
        f"listen {{address}} ssl; ssl_certificate {authority.chain}; ssl_certificate_key {authority.chain};"
    )
    assert f"proxy_set_header {HEADER} " in server
    forged = {HEADER: "CN=builder-01"}
    async with nginx_server(tmp_path / "nginx", server) as address:

        def ask(method: str, client: str | None) -> int:
            file = authority.certify_client(tmp_path / "client.pem", client) if client is not None else None
            path = PROBE if method == "PUT" else "/nix-cache-info"
            return send(address, authority, method, path, forged, file).status

        statuses = {who: await asyncio.to_thread(ask, "PUT", who) for who in ("builder-02", "reader", None)}
        assert statuses == {"builder-02": 200, "reader": 403, None: 401}
        assert await asyncio.to_thread(ask, "GET", None) == 200


def test_without_uploads_nobody_logs_in(tmp_path: Path) -> None:
    """There is nothing to log in for."""
    settings = upload_settings(tmp_path, None, NIXCACHE_UPLOADS="0")
    with UploadProxy(tmp_path / "proxy", **settings) as proxy:
        assert log_in(proxy, BEARER) == (404, b"Not Found\n")


def test_the_library_is_imported_only_for_oidc(issuer: Issuer, tmp_path: Path) -> None:
    """It would cost every start time and memory."""
    for number, more in enumerate(({"NIXCACHE_OIDC_FILE": ""}, {})):
        with oidc_proxy(tmp_path / str(number), issuer, **more) as proxy:
            maps = Path(f"/proc/{proxy.process.pid}/maps").read_text()
            assert ("cryptography" in maps) == (not more)


def test_reading_over_https_is_open(secure: TlsProxy) -> None:
    """With and without a certificate; plain HTTP gets no answer, and does no harm."""
    assert secure.url.startswith("https://")
    assert secure.send("GET", "/nix-cache-info", {}).status == 200
    with _connect(secure) as client:
        client.sendall(b"GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"StoreDir" not in client.recv(2**16)
    # Pipelined, over one connection.
    with context(secure.authority).wrap_socket(_connect(secure), server_hostname="localhost") as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        received = b""
        while received.count(b"ok\n") < 2 and (more := client.recv(2**16)):
            received += more
        assert received.count(b"HTTP/1.1 200") == 2


def _connect(proxy: UploadProxy) -> socket.socket:
    host, port = urlsplit(proxy.url).netloc.split(":")
    return socket.create_connection((host, int(port)))


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [
        ("builder-01", 200, b'"certificate CN=builder-01"'),
        ("reader", 403, b"the subject of the client certificate"),
    ],
)
def test_certificates(secure: TlsProxy, tmp_path: Path, name: str, status: int, text: bytes) -> None:
    """Those of the authority let upload whose subject may; a token counts beside any."""
    client = secure.authority.certify_client(tmp_path / "client.pem", name)
    answer = secure.send("POST", "/_login", {}, client)
    assert (answer.status, text in answer.body) == (status, True)
    assert secure.send("PUT", PROBE, {}, client).status == status
    assert secure.send("PUT", PROBE, BEARER, client).status == 200
    assert secure.send("GET", "/nix-cache-info", {}, client).status == 200


def test_nothing_forges_a_certificate(secure: TlsProxy, tmp_path: Path) -> None:
    """One that has expired, or is another authority's, ends the connection; a header is nothing."""
    other = make_authority(tmp_path)
    for client in (
        secure.authority.certify_client(tmp_path / "expired.pem", "builder-01", days=-1),
        other.certify_client(tmp_path / "other.pem", "builder-01"),
    ):
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
            secure.send("POST", "/_login", {}, client)
    assert secure.send("POST", "/_login", {HEADER: "CN=builder-01"}).status == 401
    assert secure.send("POST", "/_login", {}).status == 401


def test_handshakes_that_never_end_hold_up_nobody(secure: TlsProxy) -> None:
    """Others connect meanwhile."""
    silent = [_connect(secure) for _ in range(200)]
    try:
        for one in silent[::2]:
            one.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert secure.send("GET", "/nix-cache-info", {}).status == 200
    finally:
        for one in silent:
            one.close()
    assert secure.send("GET", "/nix-cache-info", {}).status == 200
    assert "Traceback" not in secure.log


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"NIXCACHE_TLS_KEY": ""}, "HTTPS needs NIXCACHE_TLS_CERT and NIXCACHE_TLS_KEY"),
        ({"NIXCACHE_TLS_CERT": "/nowhere"}, "NIXCACHE_TLS_CERT, NIXCACHE_TLS_KEY: /nowhere: No such file"),
        ({"NIXCACHE_TLS_CERT": "{empty}"}, "expected a certificate and its key"),
        ({"NIXCACHE_TLS_KEY": "{encrypted}"}, "without a password, in PEM"),
        ({"NIXCACHE_TLS_CLIENT_CA": "{empty}"}, "NIXCACHE_TLS_CLIENT_CA: {empty}"),
        ({"NIXCACHE_TLS_CLIENT_CA": ""}, "set NIXCACHE_TLS_CLIENT_CA or NIXCACHE_UPLOAD_CERT_HEADER"),
        ({"NIXCACHE_UPLOAD_SUBJECTS": ""}, "NIXCACHE_UPLOAD_SUBJECTS is not set"),
        ({"NIXCACHE_UPLOAD_CERT_HEADER": "X Y"}, "expected the name of a header"),
        ({"NIXCACHE_OIDC_FILE": "{empty}"}, "NIXCACHE_OIDC_FILE: {empty}: expected 1 to 100 tables"),
        ({"NIXCACHE_OIDC_FILE": "/nowhere"}, "NIXCACHE_OIDC_FILE: /nowhere: No such file"),
        ({"NIXCACHE_UPLOAD_TOKENS_FILE": "{large}"}, "{large}: longer than 65536 bytes"),
        ({"NIXCACHE_UPLOAD_TOKENS_FILE": "{empty}"}, "{empty}: has no line name:token"),
    ],
)
def test_unusable_settings_end_the_start(
    authority: Authority, tmp_path: Path, settings: dict[str, str], text: str
) -> None:
    """In one line, which names the setting."""
    files = {name: str(tmp_path / name) for name in ("empty", "large", "encrypted")}
    (tmp_path / "empty").write_text("")
    (tmp_path / "large").write_text("x" * 70_000)
    if "{encrypted}" in settings.values():
        subprocess.run(
            [
                *(require_program("openssl"), "ec", "-in", str(authority.chain), "-out", files["encrypted"]),
                *("-aes128", "-passout", "pass:secret"),
            ],
            check=True,
            capture_output=True,
        )
    more = {name: value.format(**files) for name, value in settings.items()}
    with pytest.raises(RuntimeError) as caught, tls_proxy(tmp_path, authority, **more):
        pass
    assert text.format(**files) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_tokens_file_that_all_can_read_is_warned_of(tmp_path: Path) -> None:
    """Its owner alone should."""
    settings = upload_settings(tmp_path, None)
    tokens = Path(settings["NIXCACHE_UPLOAD_TOKENS_FILE"])
    for mode, is_warned in ((0o644, True), (0o640, False)):
        tokens.chmod(mode)
        folder = tmp_path / str(mode)
        with UploadProxy(folder, **settings) as proxy:
            assert ("every user of this machine can read" in proxy.log) is is_warned
