"""Requests that are not what they seem: framing, targets, hash parts, ranges, origins."""

import re
from itertools import product

import pytest

from tests.hostile.raw_client import RawAnswer, connect, converse, read_to_end
from tests.hostile.story import KNOWN, UPSTREAM_NAR, Tally, Upstream, url_of
from tests.support.objects import hash_part_of
from tests.support.proxy import ProxyProcess

NARINFO = b"GET /" + hash_part_of("small").encode() + b".narinfo HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
PLAIN = NARINFO + HOST + b"\r\n"
REFRESH = b"POST /_refresh HTTP/1.1\r\n" + HOST
INNER = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
INNER_LENGTH = str(len(INNER)).encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"

# What each is answered, with a plain request behind it: 200 at the end means that the plain one was seen.
CASES: dict[str, dict[str, tuple[bytes, list[int]]]] = {
    "request smuggling": {
        "length and chunked": (REFRESH + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n" + LAST_CHUNK, [400]),
        "chunked and length": (
            NARINFO + HOST + CHUNKED + b"Content-Length: " + INNER_LENGTH + b"\r\n\r\n" + LAST_CHUNK,
            [400],
        ),
        "two lengths": (
            NARINFO + HOST + b"Content-Length: 0\r\nContent-Length: " + INNER_LENGTH + b"\r\n\r\n",
            [400],
        ),
        "lengths in a list": (NARINFO + HOST + b"Content-Length: 0, 5\r\n\r\n", [400]),
        "length with a sign": (NARINFO + HOST + b"Content-Length: +" + INNER_LENGTH + b"\r\n\r\n", [400]),
        "length in base 16": (NARINFO + HOST + b"Content-Length: 0x10\r\n\r\n", [400]),
        "negative length": (NARINFO + HOST + b"Content-Length: -1\r\n\r\n", [400]),
        "length of 40 digits": (NARINFO + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n", [400]),
        "another coding": (NARINFO + HOST + b"Transfer-Encoding: xchunked\r\n\r\n" + LAST_CHUNK, [400]),
        "identity": (NARINFO + HOST + b"Transfer-Encoding: identity\r\n\r\n", [400]),
        "chunked, identity": (NARINFO + HOST + b"Transfer-Encoding: chunked, identity\r\n\r\n", [400]),
        "chunked twice": (NARINFO + HOST + CHUNKED + CHUNKED + b"\r\n" + LAST_CHUNK, [400]),
        "vertical tab before chunked": (NARINFO + HOST + b"Transfer-Encoding: \x0bchunked\r\n\r\n", [400]),
        "space before the colon": (NARINFO + HOST + b"Transfer-Encoding : chunked\r\n\r\n", [400]),
        "folded coding": (NARINFO + HOST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + LAST_CHUNK, [400]),
        "folded field": (NARINFO + HOST + b"X: a\r\n Content-Length: 5\r\n\r\n", [400]),
        "folded host": (NARINFO + b"Host:\r\n localhost\r\n\r\n", [400]),
        "line feeds alone": (NARINFO.replace(b"\r", b"") + b"Host: localhost\n\n", [400]),
        "one line feed alone": (NARINFO + b"Host: localhost\nX: y\r\n\r\n", [400]),
        "carriage return alone": (NARINFO + b"Host: localhost\rX: y\r\n\r\n", [400]),
        "two hosts": (NARINFO + HOST + HOST + b"\r\n", [400]),
        "no host": (NARINFO + b"\r\n", [400]),
        "host in a trailer": (REFRESH + CHUNKED + b"\r\n0\r\nHost: evil.example\r\n\r\n", [400]),
        "chunk of 2^72 bytes": (REFRESH + CHUNKED + b"\r\nffffffffffffffffff\r\n", [400]),
        "narinfo as a body": (
            NARINFO + HOST + b"Content-Length: " + str(len(PLAIN)).encode() + b"\r\n\r\n" + PLAIN,
            [200, 200],
        ),
        "narinfo in a chunk": (
            NARINFO + HOST + CHUNKED + b"\r\n%x\r\n" % len(PLAIN) + PLAIN + b"\r\n" + LAST_CHUNK,
            [200, 200],
        ),
        "request as a body": (NARINFO + HOST + b"Content-Length: " + INNER_LENGTH + b"\r\n\r\n", [200]),
    },
    "oversized heads": {
        "target of 8,000 bytes": (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [404, 200]),
        "target of 9,000 bytes": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "target of 1 MB": (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "value of 9,000 bytes": (NARINFO + HOST + b"X: " + b"a" * 9000 + b"\r\n\r\n", [400]),
        "value of 1 MB": (NARINFO + HOST + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n", [400]),
        "name of 9,000 bytes": (NARINFO + HOST + b"a" * 9000 + b": b\r\n\r\n", [400]),
        "method of 9,000 bytes": (b"A" * 9000 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "1,000 fields": (NARINFO + HOST + b"X: y\r\n" * 1000 + b"\r\n", [400]),
        "100,000 fields": (NARINFO + HOST + b"X: y\r\n" * 100_000 + b"\r\n", [400]),
        "host of 5,000 bytes": (NARINFO + b"Host: " + b"a" * 5000 + b"\r\n\r\n", [403, 200]),
    },
    "other protocols and methods": {
        "HTTP/0.9": (NARINFO.replace(b" HTTP/1.1", b"") + b"\r\n", [400]),
        "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
        "upgrade to h2c": (
            NARINFO
            + HOST
            + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n",
            [200],
        ),
        "upgrade to websocket": (
            NARINFO + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
            [200, 200],
        ),
        "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400]),
        "zeros": (bytes(1000), [400]),
        "unknown method": (NARINFO.replace(b"GET", b"FOO") + HOST + b"\r\n", [400]),
        "lower case": (NARINFO.replace(b"GET", b"get") + HOST + b"\r\n", [400]),
        "TRACE": (NARINFO.replace(b"GET", b"TRACE") + HOST + b"\r\n", [405, 200]),
        "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [404, 200]),
        "CONNECT": (b"CONNECT localhost:22 HTTP/1.1\r\n" + HOST + b"\r\n", [404, 200]),
        "gzip that is none": (
            REFRESH + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            [200, 200],
        ),
    },
    "Expect": {
        "on a plain request": (NARINFO + HOST + b"Expect: 100-continue\r\n\r\n", [100, 200, 200]),
        "something else": (NARINFO + HOST + b"Expect: tea\r\n\r\n", [417, 200]),
        "as nix copy sends it": (
            PLAIN.replace(b"GET", b"PUT")[:-2]
            + b"Expect: 100-continue\r\nContent-Length: "
            + INNER_LENGTH
            + b"\r\n\r\n",
            [100, 405],
        ),
        "with a body that is none": (
            NARINFO + HOST + b"Expect: 100-continue\r\nContent-Length: " + INNER_LENGTH + b"\r\n\r\n",
            [100, 200],
        ),
    },
    "targets that are none": {
        "not UTF-8": (b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "NUL": (b"GET /\0 HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "tabs around it": (b"GET\t/health\tHTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "a space inside": (b"GET /health x HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "backslash": (b"GET \\health HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "no hex digits": (b"GET /%zz%f HTTP/1.1\r\n" + HOST + b"\r\n", [404, 200]),
        "open bracket": (b"GET http://[::1/health HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "port 99999": (b"GET http://localhost:99999/health HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "port x": (b"GET http://localhost:x/health HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
        "file://": (b"GET file:///etc/passwd HTTP/1.1\r\n" + HOST + b"\r\n", [400]),
    },
    "pipelining": {
        "20 of one kind": (INNER * 20, [200] * 21),
        "both ways in turn": ((NARINFO + HOST + b"\r\n" + INNER) * 10, [200] * 21),
        "behind empty lines": (b"\r\n\r\n" + NARINFO + HOST + b"\r\n", [200, 200]),
    },
}
# Where what is wrong comes behind the head, the answer may be out before it is seen; what follows never is.
# An upgrade may be ignored (RFC 9110, section 7.8), and the answer that ends it may not be waited for.
ALSO = {
    "host in a trailer": [[200, 400], [200]],
    "chunk of 2^72 bytes": [[200, 400], [200]],
    "upgrade to h2c": [[200, 400], [200, 200]],
    "HTTP/0.9": [[200]],
}
FLAT = [(group, name, *case) for group, cases in CASES.items() for name, case in cases.items()]


@pytest.mark.parametrize(
    ("group", "name", "request_bytes", "statuses"), FLAT, ids=[f"{group}: {name}" for group, name, *_ in FLAT]
)
@pytest.mark.parametrize("cut", [None, 1, 7], ids=["whole", "in single bytes", "in sevens"])
def test_odd_requests(
    proxy: ProxyProcess,
    group: str,
    name: str,
    request_bytes: bytes,
    statuses: list[int],
    cut: int | None,
    clients: Tally,
) -> None:
    """What two readers could read in two ways is refused, and the connection with it, however it is cut."""
    data = request_bytes + INNER
    if cut is not None and len(data) > 3000:
        clients.add(group, "not cut: it is long", 3 * len(CASES[group]))
        return
    pieces = [data] if cut is None else [data[start : start + cut] for start in range(0, len(data), cut)]
    allowed = [statuses, *ALSO.get(name, [])]
    answers = converse(proxy.host, pieces, answers=min(map(len, allowed)))
    assert [answer.status for answer in answers] in allowed
    assert all(answer.is_whole for answer in answers)
    first = next(status for status in statuses if status != 100)
    outcome = {200: "answered", 400: "400, and the connection ends"}.get(first, str(first))
    clients.add(group, outcome, 3 * len(CASES[group]))


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET http://[::1]@/health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\xff secret\r\n\r\n",
    ],
)
def test_what_cannot_be_read_is_not_repeated(proxy: ProxyProcess, request_bytes: bytes) -> None:
    """Neither what was asked nor what failed to read it stands in the answer, and no traceback in the log."""
    with connect(proxy.host) as connection:
        connection.sendall(request_bytes)
        received = read_to_end(connection)
    assert not [word for word in (b"aiohttp", b"Python", b"9.9", b"secret", b"[::1]") if word in received]
    assert "Traceback" not in proxy.log
    assert proxy.ask("/health").status == 200


LEAVING = [
    *("..", ".", "%2e%2e", "%2E%2e", ".%2e", "%252e%252e", "%25252e%25252e", "..%2f..", "..%5c..", "%5c"),
    *("\\..", "%00", "..%00", "a%0d%0ab", "a%0ab", "%2f", "%2fetc%2fpasswd", "%c0%ae%c0%ae", "%e0%80%ae"),
    *("..;", "%u002e", "a//b", "a/./b", "a/../b", "a/%2e%2e/%2e%2e/%2e%2e/b", "nar/../../other", "~root"),
    *("nar/%2e%2e/%2e%2e/other", "@evil.example/", ":80/", "http:%2f%2fevil.example/x", "nar/x?y#z"),
    *("nar/x%3f", "nar/%ef%bc%8e%ef%bc%8e"),
]


@pytest.mark.parametrize("path", LEAVING)
def test_no_path_leaves_its_place(
    proxy: ProxyProcess, blobs_upstream: Upstream, path: str, clients: Tally
) -> None:
    """Below no route, and at the upstream only below its base, in whatever spelling."""
    key = blobs_upstream.key
    blobs_upstream.asked.clear()
    for before in (
        *("/", "/nar/", f"/upstream/{key}/", f"/upstream/{key}/nar/", "/upstream/", f"/upstream/{key}"),
    ):
        request = f"GET {before}{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1")
        [answer] = converse(proxy.host, [request], answers=1)
        assert answer.status in {400, 404}
        assert answer.body == b"Not Found\n" or answer.status == 400
    for target in blobs_upstream.asked:
        assert target.startswith("/base/")
        assert not any(
            part in target.lower() for part in ("..", "%2e", "%5c", "%2f", "%00", "%0", "//", "\\")
        )
    clients.add("path traversal", "404 or 400; no upstream asked outside of its base", len(LEAVING), times=6)


NO_BLOB = f"/nar/{'0' * 64}"
NOT_THERE = [
    *("/", "/nar/", "/nar/x", "/nar", "/upstream/", "/upstream/none/", "/upstream//nar/x.nar", "/nowhere"),
    *("/upstream/none/x?a=%00", "/log/abc.drv", "/realisations/sha256:abc!out.doi", "/_status/"),
    *(f"/{'0' * 32}.narinfo/", f"/{'0' * 32}.ls", NO_BLOB, f"{NO_BLOB}.nar.zst", f"/nar/{'A' * 64}.nar.zst"),
    *(f"{NO_BLOB}.nar.zst/", f"{NO_BLOB}.nar.zst%0a", f"{NO_BLOB}.nar.%ff", f"{NO_BLOB}%2f0-1.nar.zst"),
    *(
        f"{NO_BLOB}/{place}.nar.zst"
        for place in ("0-1", "0-999999999", "-1-2", "01-2", "0-0", f"0-{'9' * 500}")
    ),
]


def test_what_is_not_there_is_404(proxy: ProxyProcess) -> None:
    """Nix survives it; and the body says no more than the status does."""
    for path in NOT_THERE:
        answer = proxy.ask(path)
        assert (answer.status, answer.body) == (404, b"Not Found\n"), path


def test_a_wrong_method_is_405(proxy: ProxyProcess) -> None:
    """``nix copy --to`` is refused plainly, and told what is allowed, and how else to publish."""
    reads = (
        *(f"/{'0' * 32}.narinfo", "/nix-cache-info", f"{NO_BLOB}.nar.zst", "/metrics", "/health", "/_status"),
    )
    for method, path in [
        *product(("PUT", "POST", "DELETE", "PATCH"), (*reads, "/public-key", "/upstream/none/nar/x.nar")),
        *product(("GET", "HEAD", "OPTIONS"), ["/_refresh"]),
    ]:
        answer = proxy.ask(path, method=method)
        assert (answer.status, answer.headers["Allow"]) == (
            405,
            "POST" if path == "/_refresh" else "GET,HEAD",
        )
        if method == "PUT":
            assert b"nixcache-oci push" in answer.body
        else:
            assert answer.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")


@pytest.mark.parametrize("seed", ["small", "large"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_nar_ends_where_its_length_says(proxy: ProxyProcess, seed: str, version: str) -> None:
    """To every version of HTTP, and to HEAD; a client that speaks 1.0, as old monitoring, names no host."""
    host = "Host: localhost\r\nConnection: close\r\n" if version == "1.1" else ""
    place = f"/{url_of(proxy, seed)} HTTP/{version}\r\n{host}\r\n"
    [answer] = converse(proxy.host, [f"GET {place}".encode()], answers=1)
    [head] = converse(proxy.host, [f"HEAD {place}".encode()], answers=1)
    assert answer.body == proxy.ask(f"/{url_of(proxy, seed)}").body
    assert int(answer.headers["content-length"]) == int(head.headers["content-length"]) == len(answer.body)


WRONG_HASH_PARTS = [
    *("0" * 31, "0" * 33, "0" * 64, "e" * 32, "A" * 32, "0" * 31 + "E", "0" * 31 + "u", "o" * 32, "-" * 32),
    *("%30" * 32 + "0", "0" * 31 + "%00", "0" * 32 + "%0a", "0" * 31 + "%d9%a0", "0" * 31 + "%ff"),
    *(
        "0" * 31 + ".",
        ".." + "0" * 30,
        "0" * 32 + "-name",
        "sha256:" + "0" * 25,
        "*" * 32,
        "%2e" * 32,
        "%20" + "0" * 31,
    ),
]


@pytest.mark.parametrize("letters", WRONG_HASH_PARTS)
def test_what_is_no_hash_part_is_not_looked_for(
    proxy: ProxyProcess, blobs_upstream: Upstream, letters: str, clients: Tally
) -> None:
    """404 to GET and HEAD, and no upstream is asked."""
    blobs_upstream.asked.clear()
    for method, end in product(("GET", "HEAD"), (".narinfo", ".narinfo?x", ".NARINFO", ".narinfo.narinfo")):
        request = f"{method} /{letters}{end} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        [answer] = converse(proxy.host, [request], answers=1)
        assert answer.status == 404
    assert blobs_upstream.asked == []
    clients.add("hash parts of wrong shape", "404, and no upstream asked", len(WRONG_HASH_PARTS), times=8)


RANGES = [
    *("bytes=0-", "bytes=0-0", "bytes=1-2", "bytes=-1", "bytes=-0", "bytes=5-4", "bytes=-", "bytes="),
    "bytes",
    *("bytes=0-0,2-2", "bytes=0-100,50-150", "bytes=0-,0-,0-,0-", "bytes=" + "0-0," * 500 + "1-1", "bytes=,"),
    *("", "bytes=0-9223372036854775807", "bytes=0-18446744073709551616", "bytes=18446744073709551615-"),
    *("bytes=999999-", f"bytes={10**30}-", f"bytes=0-{10**30}", f"bytes=-{10**30}", f"bytes={'9' * 5000}-"),
    *("bytes=-1-2", "bytes=1--2", "items=0-1", "BYTES=0-1", "bytes = 0 - 1", "bytes=0x0-0x1", "bytes=+0-+1"),
    *("bytes=1e1-", "bytes=\u0660-\u0661", "none", "bytes=0-1\tx", "bytes=0-1;q=1", "bytes=%30-"),
    *("seconds=1-2, bytes=0-1", "bytes=1.0-2"),
]
# The others are checked against what their answers say.
EXACT = {
    "bytes=0-0": slice(0, 1),
    "bytes=1-2": slice(1, 3),
    "bytes=-1": slice(-1, None),
    "BYTES=0-1": slice(0, 2),
    "bytes = 0 - 1": slice(0, 2),
    "bytes=0-9223372036854775807": slice(None),
}


@pytest.mark.parametrize("header", RANGES)
def test_a_range_is_served_ignored_or_refused(
    proxy: ProxyProcess, blobs_upstream: Upstream, header: str, clients: Tally
) -> None:
    """Never other bytes than those that the answer says: of a slice, of a blob, and of an upstream's NAR."""
    places = [url_of(proxy, "small"), url_of(proxy, "large"), f"upstream/{blobs_upstream.key}/nar/known.nar"]
    statuses = set()
    for place in places:
        head = f"GET /{place} HTTP/1.1\r\nHost: localhost\r\n"
        [whole] = converse(proxy.host, [f"{head}\r\n".encode()], answers=1)
        assert (whole.status, whole.headers["accept-ranges"]) == (200, "bytes")
        [answer] = converse(proxy.host, [f"{head}Range: {header}\r\n\r\n".encode()], answers=1)
        statuses.add(answer.status)
        size = len(whole.body)
        if header in EXACT:
            assert answer.body == whole.body[EXACT[header]]
        if answer.status == 206:
            first, last = map(int, answer.headers["content-range"].split()[1].split("/")[0].split("-"))
            assert 0 <= first <= last < size
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
            assert answer.body == whole.body[first : last + 1]
        elif answer.status == 416:
            assert answer.headers["content-range"] == f"bytes */{size}"
        else:
            assert (answer.status, answer.body) == (200, whole.body)
    outcome = {200: "ignored: 200 and the whole", 206: "206 and just these bytes", 416: "416 and the size"}
    said = " or ".join(outcome[status] for status in sorted(statuses))
    clients.add("Range", said, len(RANGES), times=len(places))


# What browsers say of a page of another site, and of one of another port or name of ours.
SITES = ["cross-site", "same-site", "Cross-Site", "", "new-word", "same-origin\r\nSec-Fetch-Site: cross-site"]
PLACES = ["/nix-cache-info", "/public-key", "/_status", "/metrics", "/health", "/no-such-thing"]


@pytest.mark.parametrize("site", SITES)
def test_a_page_of_another_site_gets_nothing(
    proxy: ProxyProcess, blobs_upstream: Upstream, site: str, clients: Tally
) -> None:
    """Not by an image, a script or a link, on no endpoint; and no answer is one that a page could use."""
    narinfo = f"/{hash_part_of('small')}.narinfo"
    places = [*PLACES, narinfo, f"/{url_of(proxy, 'small')}", f"/{url_of(proxy, 'large')}"]
    field = b"Sec-Fetch-Site: " + site.encode() + b"\r\n"
    blobs_upstream.asked.clear()
    for place in [*places, f"/{KNOWN}.narinfo", f"/{'0' * 32}.narinfo"]:
        for method in (b"GET", b"HEAD"):
            line = method + b" " + place.encode() + b" HTTP/1.1\r\n" + HOST
            [answer] = converse(proxy.host, [line + field + b"\r\n"], answers=1)
            assert answer.status == 403
            check_guarded(answer)
    assert blobs_upstream.asked == []
    for own in (b"none", b"same-origin"):
        [answer] = converse(proxy.host, [NARINFO + HOST + b"Sec-Fetch-Site: " + own + b"\r\n\r\n"], answers=1)
        assert answer.status == 200
    clients.add("Sec-Fetch-Site", "403 on every endpoint", len(SITES), times=len(places) * 2)


def test_no_answer_is_of_use_to_a_page(proxy: ProxyProcess) -> None:
    """Out of memory, of the library, errors, parts, and of requests that are none."""
    large = f"/{url_of(proxy, 'large')}"
    requests = [
        *(b"GET " + place.encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n" for place in [*PLACES, large]),
        *(PLAIN, PLAIN.replace(b"GET", b"HEAD"), PLAIN.replace(b"GET", b"PUT"), REFRESH + b"\r\n"),
        b"GET /" + url_of(proxy, "small").encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET " + large.encode() + b" HTTP/1.1\r\n" + HOST + b"Range: bytes=0-1\r\n\r\n",
        b"GET " + large.encode() + b" HTTP/1.1\r\n" + HOST + b"Range: bytes=9999999-\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"OPTIONS /_status HTTP/1.1\r\n" + HOST + b"Access-Control-Request-Private-Network: true\r\n\r\n",
        b"no HTTP\r\n\r\n",
    ]
    for request in requests:
        [answer] = converse(proxy.host, [request], answers=1)
        check_guarded(answer)


def check_guarded(answer: RawAnswer) -> None:
    """A browser neither guesses what it is nor lets another site's page have it."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_refused_host_is_named_in_the_log(proxy: ProxyProcess) -> None:
    """Who reaches the proxy by another name learns where that name goes."""
    converse(proxy.host, [NARINFO + b"Host: cache.example\r\n\r\n"], answers=1)
    assert re.search(r'event="request refused" host=cache\.example .*NIXCACHE_HOSTS', proxy.log)


@pytest.mark.parametrize(
    ("target", "hosts", "statuses"),
    [
        ("/health", ["localhost", "evil.example"], {400, 403}),
        ("/health", ["evil.example", "localhost"], {400, 403}),
        ("/health", ["127.0.0.1.evil.example:80"], {403}),
        ("/_status", ["a b"], {400, 403}),
        ("/nix-cache-info", [""], {400, 403}),
        ("http://evil.example/health", ["localhost"], {403}),
        ("http://localhost/health", ["evil.example"], {403}),
        ("http://user@localhost/health", ["localhost"], {403}),
        ("http://evil.example/health", [], {400, 403}),
        ("http://localhost/health", ["localhost"], {200}),
        ("http://[::1]:80/health", ["localhost"], {200}),
        ("HTTP://LOCALHOST:37515/health", ["localhost"], {200}),
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
    [answer] = converse(proxy.host, ["\r\n".join(lines).encode()], answers=1)
    assert answer.status in statuses


ORIGINS = ["null", "http://evil.example", "http://127.0.0.1:1", "", "file://", "chrome-extension://x", "\xff"]


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_page_learns_and_changes_nothing(proxy: ProxyProcess, origin: str, clients: Tally) -> None:
    """No leave for other origins is ever given, and what changes something is refused."""
    before = proxy.status()["counters"]["refreshes"]
    field = b"Origin: " + origin.encode("latin-1") + b"\r\n"
    asking = b"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: x-nixcache-oci\r\n"
    for line, more, status in (
        (b"POST /_refresh", b"", 403),
        (b"POST /_refresh", b"Content-Length: 0\r\nSec-Fetch-Site: cross-site\r\n", 403),
        (b"OPTIONS /_refresh", asking, 403),
        (b"GET /_status", b"", 403),
        (NARINFO.partition(b" HTTP")[0], b"", 403),
    ):
        # A header that gives leave would be one that is none of ours, at which the client stops.
        [answer] = converse(proxy.host, [line + b" HTTP/1.1\r\n" + HOST + field + more + b"\r\n"], answers=1)
        assert answer.status == status
    assert proxy.status()["counters"]["refreshes"] == before
    clients.add("Origin", "403; no header gives leave", len(ORIGINS), times=5)


def test_the_upstream_is_served(proxy: ProxyProcess, blobs_upstream: Upstream) -> None:
    """The tests above would hold for a proxy that serves nothing."""
    assert proxy.ask(f"/{KNOWN}.narinfo").status == 200
    assert proxy.ask(f"/upstream/{blobs_upstream.key}/nar/known.nar").body == UPSTREAM_NAR
