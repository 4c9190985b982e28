"""What an upstream may say: none of it becomes a header, a status or a request of ours."""

import zlib
from pathlib import Path

from nixcache_oci.clients.upstream.address import parse_upstream
from tests.hostile.raw_client import converse, raw_upstream, whole
from tests.hostile.story import Tally
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.upstream_server import narinfo_text

NAR = b"nar of some bytes" * 10
LENGTH = b"Content-Length: %d" % len(NAR)


def framed(*fields: bytes, status: bytes = b"HTTP/1.1 200 OK", body: bytes = NAR) -> bytes:
    """Write an answer whose framing is what the fields say."""
    return b"\r\n".join([status, *fields, b"Connection: close", b"", body])


# Each with the statuses that a client may get; None where the connection may be cut as well.
HEADS: dict[str, bytes] = {
    "foreign fields": whole(NAR, b"Set-Cookie: a=b", b"X-Injected: 1", b"Access-Control-Allow-Origin: *"),
    "a type with a line break": whole(NAR, b"Content-Type: text/html\r\n\tSet-Cookie: a=b"),
    "a type with half a line break": whole(NAR, b"Content-Type: text/html\rSet-Cookie: a=b"),
    "a type with another": whole(NAR, b"Content-Type: text/html\nSet-Cookie: a=b"),
    "a NUL": whole(NAR, b"Content-Type: text/\0html"),
    "no UTF-8": whole(NAR, b"Content-Type: \xff\xfe", b'ETag: "\xff"'),
    "a field of a megabyte": whole(NAR, b"X: " + b"a" * 1_000_000),
    "a million fields": whole(NAR, *[b"X: y"] * 200_000),
    "an encoding": whole(NAR, b"Content-Encoding: gzip"),
    "a negative length": framed(b"Content-Length: -5"),
    "a length with a sign": framed(b"Content-Length: +5"),
    "a length in a list": framed(b"Content-Length: 5, 5"),
    "two lengths": framed(b"Content-Length: 5", LENGTH),
    "a length of 20 digits": framed(b"Content-Length: 99999999999999999999"),
    "a length of 5000 digits": framed(b"Content-Length: " + b"9" * 5000),
    "a length that is too long": framed(b"Content-Length: 1000"),
    "a length that is too short": framed(b"Content-Length: 5"),
    "no length": framed(),
    "chunks that are none": framed(b"Transfer-Encoding: chunked"),
    "a chunk of 2^64 bytes": framed(b"Transfer-Encoding: chunked", body=b"10000000000000000\r\n"),
    "length and chunks": framed(LENGTH, b"Transfer-Encoding: chunked", body=b"5\r\nabcde\r\n0\r\n\r\n"),
    "a part that nobody asked for": whole(NAR, b"Content-Range: bytes 0-9/10", status=b"206 Partial Content"),
    "not modified": framed(status=b"HTTP/1.1 304 Not Modified", body=b""),
    "a thousand times 100": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000 + whole(NAR),
    "HTTP/9.9": framed(LENGTH, status=b"HTTP/9.9 200 OK"),
    "status 99999": framed(LENGTH, status=b"HTTP/1.1 99999 OK"),
    "status -1": framed(LENGTH, status=b"HTTP/1.1 -1 OK"),
    "status 0": framed(LENGTH, status=b"HTTP/1.1 000 OK"),
    "no HTTP": b"220 smtp.example ESMTP\r\n",
    "nothing": b"",
    "another answer behind it": whole(NAR) + whole(b"<html>"),
    "cut, with a tag that is no header": whole(NAR, b"Accept-Ranges: bytes", b'ETag: "a\x0bb"')[:-20],
    "cut, with a tag that is no text": whole(NAR, b"Accept-Ranges: bytes", b'ETag: "a\xffb"')[:-20],
    "cut, with a date that is none": whole(NAR, b"Accept-Ranges: bytes", b"Last-Modified: \x01")[:-20],
    "500": whole(NAR, status=b"500 Internal Server Error"),
    "401": whole(NAR, b'WWW-Authenticate: Basic realm="x"', status=b"401 Unauthorized"),
}
LOCATIONS: tuple[bytes, ...] = (
    *(
        b"",
        b"/",
        b"?",
        b"#",
        b"//",
        b"///",
        b":",
        b"nar/x.nar",
        b"file:///etc/passwd",
        b"gopher://127.0.0.1:25/_x",
    ),
    *(
        b"javascript:alert(1)",
        b"http://",
        b"http://[::1",
        b"http://[::1]@/x",
        b"http://127.0.0.1:99999/",
        b"http://127.0.0.1:x/",
    ),
    *(
        b"http://user:secret@127.0.0.1:1/",
        b"http://127.0.0.1:1/\tx",
        b"http://127.0.0.1:1/ x",
        b"http://\xff/",
    ),
    *(
        b"http://127.0.0.1:1/\x0bx",
        b"/a\x00b",
        b"http://" + b"a" * 3000 + b".example/",
        b"/%0d%0aSet-Cookie: a=b",
    ),
    *(b"http://169.254.169.254/latest/meta-data/", b"ftp://127.0.0.1:1/", b"oci:/etc", b"data:text/plain,x"),
)
REDIRECTS = {
    f"redirect {number} {status.decode()}": whole(b"", b"Location: " + location, status=status + b" Found")
    for number, location in enumerate(LOCATIONS)
    for status in (b"302", b"308")
}


def test_no_head_of_an_upstream_becomes_one_of_ours(tmp_path: Path, clients: Tally, data: Tally) -> None:
    """Header injection, wrong framing, redirects to anywhere: 404, or the bytes alone, or a cut."""
    del clients
    answers = {f"/nar/{number}.nar": answer for number, answer in enumerate((HEADS | REDIRECTS).values())}
    asked: list[str] = []
    with raw_upstream(answers, asked.append) as url:
        settings = {"NIXCACHE_REGISTRY": f"oci:{tmp_path}/none", "NIXCACHE_UPSTREAM": url}
        with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
            key = parse_upstream(url).key
            for number, name in enumerate(HEADS | REDIRECTS):
                for line in ("GET", "HEAD"):
                    request = f"{line} /upstream/{key}/nar/{number}.nar HTTP/1.1\r\nHost: localhost\r\n\r\n"
                    [answer] = converse(proxy.host, [request.encode()], answers=1)
                    assert answer.status in {200, 404}, name
                    if line == "GET" and answer.status == 200:
                        assert NAR.startswith(answer.body) or not answer.is_whole, name
            assert "Traceback" not in proxy.log
            assert "unexpected" not in proxy.log
    assert all(head.split(" ")[1].isprintable() for head in asked)
    data.add(
        "heads of an upstream's NAR", "404, the bytes alone, or a cut; no header passes", times=len(HEADS)
    )
    data.add("redirects of an upstream", "404", times=len(REDIRECTS))


GOOD = narinfo_text(hash_part_of("0"))
NARINFOS: tuple[bytes, ...] = tuple(
    text.encode("latin-1")
    for text in (
        *(
            "",
            "\n",
            "<html></html>",
            "404: Not Found",
            GOOD[:-1],
            GOOD + "\n",
            "\n" + GOOD,
            GOOD.replace("\n", "\r\n"),
        ),
        GOOD.replace("nar/hello.nar.zst", "nar/x\rSet-Cookie: a=b"),
        GOOD.replace("nar/hello.nar.zst", "nar/x\nSet-Cookie: a=b\n\nStorePath: /nix/store/x"),
        *(
            GOOD.replace("nar/hello.nar.zst", url)
            for url in (
                *(
                    "",
                    "//evil.example/x",
                    "../x",
                    "nar/../../x",
                    "nar/%2e%2e/%2e%2e/x",
                    "javascript:x",
                ),
                *(
                    "file:///etc/passwd",
                    "nar/x y",
                    "nar/\x00",
                    "nar/\xff",
                    "nar/..;/x",
                    "http://[::1/x",
                    "http:///x",
                ),
                *("nar//x", "http://user@/x", "nar/x\\y", "data:,x", "http://[::1]@/x"),
            )
        ),
        *(GOOD.replace("zstd", value) for value in ("zstd\rX: y", "magic", "zstd ", "ZSTD", "zstd\0")),
        *(
            GOOD.replace("NarSize: 120", f"NarSize: {value}")
            for value in (
                "0",
                "-1",
                "1.0",
                "1e3",
                "",
                " 1",
                "0x10",
                str(2**64),
                str(10**30),
                "9" * 5000,
            )
        ),
        GOOD.replace(hash_part_of("0"), hash_part_of("another")),
        GOOD.replace("/nix/store/", "/nix/store/../../etc/"),
        GOOD.replace("-hello-2.12", "-.."),
        GOOD.replace("-hello-2.12", "-hello/../../x"),
        GOOD + "StorePath: /nix/store/" + hash_part_of("another") + "-x\n",
        GOOD.replace("References: ", "References: ../../etc/passwd"),
        GOOD + "Deriver: \n",
        GOOD + "CA: fixed:x\n",
        GOOD + "X: " + "a" * 2_000_000 + "\n",
    )
)


def test_no_narinfo_of_an_upstream_becomes_more_than_that(tmp_path: Path, data: Tally) -> None:
    """Malformed, about another store path, or one that leads elsewhere on this machine: 404."""
    bombs = [zlib.compress(bytes(20_000_000), wbits=31), zlib.compress(GOOD.encode(), wbits=31)[:-9]]
    bodies: dict[str, bytes] = {}
    for number, body in enumerate(NARINFOS):
        letters = hash_part_of(str(number))
        own = body.replace(hash_part_of("0").encode(), letters.encode())
        bodies[letters] = whole(own, b"X-Injected: 1")
    for number, bomb in enumerate(bombs):
        bodies[hash_part_of(f"bomb {number}")] = whole(bomb, b"Content-Encoding: gzip")
    good = store_object("good").narinfo.render().encode()
    with raw_upstream(
        {f"/{letters}.narinfo": body for letters, body in bodies.items()}
        | {f"/{hash_part_of('good')}.narinfo": whole(good)},
        lambda _head: None,
    ) as url:
        settings = {"NIXCACHE_REGISTRY": f"oci:{tmp_path}/none", "NIXCACHE_UPSTREAM": url}
        with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
            for wanted, body in bodies.items():
                # None of them is a reason to leave the good one out.
                for path, status in ((wanted, 404), (str(hash_part_of("good")), 200)):
                    request = f"GET /{path}.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
                    [answer] = converse(proxy.host, [request], answers=1)
                    assert answer.status == status, body[:400]
            assert proxy.status()["counters"]["upstream_hits"] == len(bodies)
            assert "Traceback" not in proxy.log
            assert len(proxy.log) < 1_000_000
    data.add("narinfos of an upstream", "404", times=len(bodies))
