"""Whatever comes in over HTTP: the right status, a bare body, and the proxy goes on."""

import asyncio
import json
import socket
from collections.abc import Iterator

import psutil
import pytest

from nixcache_oci.clients.layout import Layout
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import publish

KEY = SecretKey.generate("test-1")
SMALL = store_object("small")
LARGE = store_object("large", contents=bytes(range(256)) * 5000)
SECRET = "ghp_verysecret"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    folder = tmp_path_factory.mktemp("bad-input")

    async def fill() -> None:
        await publish(Layout(folder / "cache"), [SMALL.signed(KEY)], keys=[KEY])
        await publish(Layout(folder / "cache"), [LARGE.signed(KEY)], keys=[KEY], in_packs=False)

    asyncio.run(fill())
    with ProxyProcess(
        folder / "proxy",
        NIXCACHE_REGISTRY=f"oci:{folder}/cache",
        NIXCACHE_UPSTREAM=f"http://user:{SECRET}@127.0.0.1:9",
        GITHUB_TOKEN=SECRET,
    ) as running:
        running.wait_ready()
        yield running
        # After all that: it still serves, and nothing unexpected was logged.
        assert running.ask(f"/{hash_part_of('small')}.narinfo").status == 200
        assert "unexpected" not in running.log
        assert "Traceback" not in running.log
        assert SECRET not in running.log


def url_of(proxy: ProxyProcess, seed: str) -> str:
    return NarInfo.parse(proxy.ask(f"/{hash_part_of(seed)}.narinfo").body).url


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/.narinfo",
        "/x.narinfo",
        f"/{'0' * 31}.narinfo",
        f"/{'0' * 33}.narinfo",
        f"/{'e' * 32}.narinfo",
        f"/{'A' * 32}.narinfo",
        f"/{'0' * 32}.narinfo/",
        f"/{'0' * 32}.narinfo%00",
        f"/{'0' * 32}.ls",
        "/%2e%2e/etc/passwd",
        "/nar/",
        "/nar/x",
        "/nar/..%2f..%2fetc%2fpasswd",
        f"/nar/{'0' * 64}",
        f"/nar/{'0' * 64}.nar.zst",
        f"/nar/{'0' * 64}/0-1.nar.zst",
        f"/nar/{'0' * 64}/0-999999999.nar.zst",
        f"/nar/{'0' * 64}/-1-2.nar.zst",
        f"/nar/{'0' * 64}/01-2.nar.zst",
        f"/nar/{'0' * 64}/0-0.nar.zst",
        f"/nar/{'0' * 64}/0-{'9' * 500}.nar.zst",
        f"/nar/{'A' * 64}.nar.zst",
        f"/nar//{'0' * 64}.nar.zst",
        f"/nar/./{'0' * 64}.nar.zst",
        f"/nar/{'0' * 64}.nar.zst/",
        f"/nar/{'0' * 64}%2f0-1.nar.zst",
        f"/nar/{'0' * 64}.nar.zst%0a",
        f"/nar/{'0' * 64}.nar.%ff",
        "/nar",
        "/upstream/",
        "/upstream/none/",
        "/upstream//nar/x.nar",
        "/upstream/none/%2e%2e/x",
        "/upstream/none/x?a=%00",
        "/upstream/none/nar/x.nar",
        "/upstream/none/../../etc/passwd",
        "/log/abc.drv",
        "/realisations/sha256:abc!out.doi",
        "/nowhere",
        "/_status/",
    ],
)
def test_what_is_not_there_is_404(proxy: ProxyProcess, path: str) -> None:
    """Nix survives it; and the body says no more than the status does."""
    answer = proxy.ask(path)
    assert answer.status == 404
    assert answer.body == b"Not Found\n"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", f"/{'0' * 32}.narinfo"),
        ("DELETE", f"/{'0' * 32}.narinfo"),
        ("PUT", "/nix-cache-info"),
        ("PUT", f"/nar/{'0' * 64}.nar.zst"),
        ("POST", f"/{'0' * 32}.narinfo"),
        ("PUT", "/upstream/none/nar/x.nar"),
        ("DELETE", "/metrics"),
        ("OPTIONS", "/_refresh"),
        ("HEAD", "/_refresh"),
        ("PATCH", "/health"),
        ("POST", "/public-key"),
        ("POST", "/_status"),
        ("GET", "/_refresh"),
    ],
)
def test_a_wrong_method_is_405(proxy: ProxyProcess, method: str, path: str) -> None:
    """``nix copy --to`` is refused plainly, and told what is allowed."""
    answer = proxy.ask(path, method=method)
    assert answer.status == 405
    assert answer.headers["Allow"] == ("POST" if path == "/_refresh" else "GET,HEAD")
    assert answer.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "a b", ""])
@pytest.mark.parametrize("path", ["/nix-cache-info", "/_status"])
def test_a_strange_host_is_403(proxy: ProxyProcess, host: str, path: str) -> None:
    """DNS rebinding; Nix would read it as absent."""
    answer = proxy.ask(path, headers={"Host": host})
    assert answer.status in {400, 403}
    assert b"StoreDir" not in answer.body


def test_another_origin_cannot_refresh(proxy: ProxyProcess) -> None:
    """A page in a browser may send a POST to any address."""
    assert proxy.ask("/_refresh", method="POST", headers={"Origin": "http://evil.example"}).status == 403
    asked = proxy.ask(
        "/_refresh", method="POST", headers={"Origin": "http://localhost", "X-Nixcache-Oci": "1"}
    )
    assert json.loads(asked.body) == {"refreshed": True, "entries": 2}


@pytest.mark.parametrize("seed", ["small", "large"])
def test_ranges(proxy: ProxyProcess, seed: str) -> None:
    """A part of a slice, or of a blob, is what the whole has there; nonsense gets the whole."""
    url = url_of(proxy, seed)
    whole = proxy.ask(f"/{url}")
    assert whole.status == 200
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert "Content-Encoding" not in whole.headers
    size = len(whole.body)
    for header, part in [
        ("bytes=5-", whole.body[5:]),
        ("bytes=5-9", whole.body[5:10]),
        ("bytes=-7", whole.body[-7:]),
    ]:
        answer = proxy.ask(f"/{url}", headers={"Range": header})
        assert (answer.status, answer.body) == (206, part)
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["Content-Range"].endswith(f"/{size}")
    for header in ["bytes=9-5", "bytes=0-1,3-4", "nonsense", "bytes=-"]:
        assert proxy.ask(f"/{url}", headers={"Range": header}).body == whole.body
    beyond = proxy.ask(f"/{url}", headers={"Range": f"bytes={size}-"})
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    head = proxy.ask(f"/{url}", method="HEAD")
    assert (head.status, head.headers["Content-Length"], head.body) == (200, str(size), b"")


def test_slices_outside_of_a_pack_are_404(proxy: ProxyProcess) -> None:
    """A hostile table may point anywhere; only what lies in the pack is ever sent."""
    pack = url_of(proxy, "small").split("/")[1]
    assert proxy.ask(f"/nar/{pack}/0-1.nar.zst").status == 200
    assert proxy.ask(f"/nar/{pack}/200000-100.nar.zst").status == 404


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /nix-cache-info HTTP/9.9\r\n\r\n",
        b"GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\nBad Header: x\r\n\r\n",
        b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_what_is_no_http_harms_nobody(proxy: ProxyProcess, request_bytes: bytes) -> None:
    """It is refused or cut; the next request is answered."""
    address, _, port = proxy.host.partition(":")
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert not answer.startswith(b"HTTP/1.1 200")
    assert proxy.ask("/health").status == 200


def test_http_1_0_without_a_host_is_answered(proxy: ProxyProcess) -> None:
    """No browser speaks it; old monitoring does."""
    address, _, port = proxy.host.partition(":")
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert b" 200 OK" in answer
    assert answer.endswith(b"ok\n")


def test_the_status_tells_no_secret(proxy: ProxyProcess) -> None:
    """Not the token, and not the password of an upstream; what an operator wants to know is there."""
    answer = proxy.ask("/_status")
    assert SECRET.encode() not in answer.body
    assert SECRET.encode() not in proxy.ask("/metrics").body
    status = json.loads(answer.body)
    assert status["entries"] == 2
    assert status["segments"] == 2
    assert status["index"]["age_seconds"] >= 0
    assert status["index"]["last_error"] is None
    assert status["upstreams"][0]["url"].startswith("http://127.0.0.1:9")


def test_a_dead_upstream_is_unknown_and_soon_free(proxy: ProxyProcess) -> None:
    """It may have what nobody else has: 404, but counted apart."""
    before = proxy.status()["counters"]
    for number in range(20):
        assert proxy.ask(f"/{hash_part_of(f'nowhere-{number}')}.narinfo").status == 404
    after = proxy.status()["counters"]
    assert after["unknown"] - before["unknown"] == 20
    assert after["misses"] == before["misses"]
    assert proxy.status()["upstreams"][0]["state"] == "open"


def test_metrics_are_what_prometheus_reads(proxy: ProxyProcess) -> None:
    """Its own parser takes them."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # only here

    families = text_string_to_metric_families(proxy.ask("/metrics").body.decode())
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["nixcache_entries"] == 2
    assert values["nixcache_hits_total"] >= 1


def say(proxy: ProxyProcess, request: bytes) -> bytes:
    """Send these bytes, and read until the connection's end."""
    address, _, port = proxy.host.partition(":")
    with socket.create_connection((address, int(port)), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("target", "hosts", "statuses"),
    [
        ("/health", ["localhost", "evil.example"], {400, 403}),
        ("/health", ["evil.example", "localhost"], {400, 403}),
        ("http://evil.example/health", ["localhost"], {403}),
        ("http://localhost/health", ["evil.example"], {403}),
        ("http://user@localhost/health", ["localhost"], {403}),
        ("http://evil.example/health", [], {400, 403}),
        ("http://localhost/health", ["localhost"], {200}),
        ("http://[::1]:80/health", ["localhost"], {200}),
        ("HTTP://LOCALHOST:37515/health", ["localhost"], {200}),
        ("*", ["localhost"], {400, 404, 405}),
        ("*", ["evil.example"], {400, 403}),
        ("health", ["evil.example"], {400, 403}),
        ("//evil.example/health", ["localhost"], {404}),
    ],
)
def test_no_way_around_the_host_rule(
    proxy: ProxyProcess, target: str, hosts: list[str], statuses: set[int]
) -> None:
    """Whatever names a host in a request must be one of ours: two headers, or a target in absolute form."""
    lines = [f"GET {target} HTTP/1.1", *(f"Host: {host}" for host in hosts), "Connection: close", "", ""]
    answer = say(proxy, "\r\n".join(lines).encode())
    assert int(answer.split()[1]) in statuses


def test_a_connect_request_leads_nowhere(proxy: ProxyProcess) -> None:
    """This is no proxy of that kind."""
    answer = say(
        proxy, b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\nConnection: close\r\n\r\n"
    )
    assert int(answer.split()[1]) in {400, 403, 404, 405}


def test_a_put_that_waits_for_leave_is_refused_at_once(proxy: ProxyProcess) -> None:
    """Nix sends ``Expect: 100-continue``; and what it sends after that is no request of its own."""
    body = b"GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lines = [
        f"PUT /{'0' * 32}.narinfo HTTP/1.1",
        "Host: localhost",
        "Expect: 100-continue",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    answer = say(proxy, "\r\n".join([*lines, "", ""]).encode() + body)
    assert b" 405 " in answer
    assert b"StoreDir" not in answer


@pytest.mark.parametrize("seed", ["small", "large"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_nar_ends_where_its_length_says(proxy: ProxyProcess, seed: str, version: str) -> None:
    """To every version of HTTP; and the connection is closed where the client wants it so."""
    url = url_of(proxy, seed)
    answer = say(proxy, f"GET /{url} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == proxy.ask(f"/{url}").body
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"chunked" not in head


def test_a_hundred_clients_that_hang_up(proxy: ProxyProcess) -> None:
    """In the middle of a NAR: nothing is left open, and nothing but the next client's answer matters."""
    url = url_of(proxy, "large")
    address, _, port = proxy.host.partition(":")
    before = len(psutil.Process(proxy.process.pid).open_files())
    for _ in range(100):
        with socket.create_connection((address, int(port)), timeout=10) as connection:
            connection.sendall(f"GET /{url} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            connection.recv(100)
    assert proxy.ask(f"/{url}").status == 200
    proxy.wait_until(lambda _: len(psutil.Process(proxy.process.pid).open_files()) <= before)
    assert proxy.status()["counters"]["nars_cut"] == 0
