"""Answers that make no sense: names, addresses, headers, framing and bodies.

The one table of them: every client meets all of it, and so does the proxy, in place of an upstream's NAR.
"""

from typing import Final

HOSTS: Final[tuple[bytes, ...]] = (
    b"a" * 300,  # longer than a name may be
    b"a" * 64 + b".example",  # a label of over 63 letters
    b".".join([b"a" * 60] * 60),
    *(b"xn--" + b"a" * 70, b"xn--\xff", b"xn--99999999999", b"xn--a.xn--", b"\xc3\xa4.example"),
    *(b"\xe2\x80\x8b.example", b"\xff\xfe", b"a..b", b".a", b"-", b"%41%00", b"%", b"a\x7fb", b"a_b"),
    *(b"[::1", b"[::1]]", b"[v1.x]", b"[fe80::1%25x]", b"::1", b"999.999.999.999", b"0x7f.1.1.1.1"),
    *(b"1" * 40, b"a b", b"a,b", b"a@b@c", b""),
)
PORTS: Final = (b":0", b":99999", b":-1", b":x", b":" + b"9" * 400, b":\xd9\xa3", b": 1", b"::")
ADDRESSES: Final[tuple[bytes, ...]] = (
    *(b"http://" + host + b"/t" for host in HOSTS),
    *(b"https://" + host + b"/t" for host in HOSTS),
    *(b"http://127.0.0.1" + port + b"/t" for port in PORTS),
    *(b"//h/t", b"//" + b"a" * 300 + b"/t", b"///", b":", b"http:", b"http:/", b"http://", b"http://["),
    *(
        *(b"http:\\\\h\\t", b"?", b"#", b"", b" ", b"/\xff\xfe", b"/a b", b"/a\x00b", b"/\x7f", b"/%"),
        *(b"/%zz", b"/%ff"),
    ),
    *(
        b"/" + b"a" * 8_000,
        b"/" + b"../" * 2_000,
        b"/%0d%0aSet-Cookie: a=b",
        b"HTTP://h\xc3\xa4/",
        b"oci:/etc",
    ),
    *(b"file:///etc/passwd", b"gopher://h:1/", b"ftp://127.0.0.1:1/", b"javascript:x", b"data:text/plain,x"),
    *(
        b"http://user:secret@127.0.0.1:1/",
        b"http://:@127.0.0.1:1/",
        b"http://[::1]@/",
        b"http://127.0.0.1:1/\tx",
    ),
    *(b"http://127.0.0.1:1/ x", b"http://127.0.0.1:1/\x0bx", b"http://169.254.169.254/latest/meta-data/"),
)
FIELDS: Final[dict[str, bytes]] = {
    "a length of 5000 digits": b"Content-Length: " + b"9" * 5_000,
    "a length of 30 digits": b"Content-Length: " + b"9" * 30,
    "a negative length": b"Content-Length: -1",
    "a length in Arabic digits": b"Content-Length: \xd9\xa3",
    "two lengths": b"Content-Length: 1\r\nContent-Length: 2",
    "an unknown framing": b"Transfer-Encoding: x",
    "an encoding twice": b"Content-Length: 2\r\nContent-Encoding: gzip\r\nContent-Encoding: br",
    "an encoding that is no text": b"Content-Length: 2\r\nContent-Encoding: \xff",
    "a type that is no text": b"Content-Length: 2\r\nContent-Type: \xff/\xfe; charset=\xfd",
    "a charset that nobody knows": b"Content-Length: 2\r\nContent-Type: text/plain; charset=x-none",
    "a range that is none": b"Content-Length: 2\r\nContent-Range: bytes 9-1/\xd9\xa3",
    "a range of 5000 digits": b"Content-Length: 2\r\nContent-Range: bytes 0-1/" + b"9" * 5_000,
    "a digest that is none": b"Content-Length: 2\r\nDocker-Content-Digest: sha256:\xff",
    "a digest of another kind": b"Content-Length: 2\r\nDocker-Content-Digest: md5:" + b"a" * 32,
    "a tag that is none": b'Content-Length: 2\r\nAccept-Ranges: bytes\r\nETag: "\xff\x7f"',
    "a NUL": b"Content-Length: 2\r\nX: a\x00b",
    "a field without a name": b"Content-Length: 2\r\n: x",
    "a folded field": b"Content-Length: 2\r\nX: a\r\n b",
    "a cookie that is none": b"Content-Length: 2\r\nSet-Cookie: \xff=\xfe; expires=never; domain=\x7f",
    "a hundred fields and more": b"Content-Length: 2" + b"\r\nX: y" * 500,
    "a link that is none": b'Content-Length: 2\r\nLink: <http://[>; rel="next"',
    "a link to a name of 300 letters": b"Content-Length: 2\r\nLink: <http://"
    + b"a" * 300
    + b'/>; rel="next"',
    "a link that is no text": b'Content-Length: 2\r\nLink: <\xff>; rel="next"',
}
RETRY_AFTERS: Final[tuple[bytes, ...]] = (
    *(b"9" * 400, b"-1", b"1e999", b"\xff", b"Fri, 31 Dec 9999 23:59:59 -2359"),
    *(b"Mon, 01 Jan 0001 00:00:00 +2359", b"Mon, 01 Jan 0000 00:00:00 GMT"),
    *(b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT", b"01 Jan 2024 00:00:00 +9999999999"),
    b"99 Feb 2024 25:61:61 GMT",
)
BODIES: Final[dict[str, bytes]] = {
    "no JSON": b"{]",
    "no text": b"\xff\xfe\x00",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 10_000,
    "a number of 100000 digits": b"9" * 100_000,
    "NaN": b'{"tags": NaN, "token": NaN, "expires_in": NaN}',
    "half a pair": (
        b'{"token": "\\ud800", "tags": ["\\ud800"], "errors": [{"code": "\\ud800", "message": "\\ud800"}]}'
    ),
    "control characters": b'{"errors": [{"code": "DENIED", "message": "\\u001b[2J\\u0000\\n::error::x"}]}',
    "other types": b'{"tags": [1], "token": [], "errors": {"a": 1}, "expires_in": {}, "message": 5}',
    "a token of a megabyte": b'{"token": "' + b"a" * 1_000_000 + b'"}',
    "a lifetime beyond all numbers": b'{"token": "t", "expires_in": 1' + b"0" * 400 + b"}",
}


def _answer(status: bytes, fields: bytes, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\nConnection: close\r\n\r\n" + body


NAR: Final = b"nar of some bytes" * 10
_LENGTH: Final = b"Content-Length: %d" % len(NAR)
_CHUNKED: Final = b"Transfer-Encoding: chunked"
_RESUMABLE: Final = _LENGTH + b"\r\nAccept-Ranges: bytes\r\n"
# Right bytes in a head that is odd, or that says something else of them.
OF_A_NAR: Final[dict[str, bytes]] = {
    name: _answer(b"200 OK", fields, body)
    for name, fields, body in (
        ("foreign fields", _LENGTH + b"\r\nX-Injected: 1\r\nAccess-Control-Allow-Origin: *", NAR),
        ("a type with a line break", _LENGTH + b"\r\nContent-Type: text/html\r\n\tSet-Cookie: a=b", NAR),
        ("a type with half a line break", _LENGTH + b"\r\nContent-Type: text/html\rSet-Cookie: a=b", NAR),
        ("a type with another", _LENGTH + b"\r\nContent-Type: text/html\nSet-Cookie: a=b", NAR),
        ("no UTF-8", _LENGTH + b'\r\nContent-Type: \xff\xfe\r\nETag: "\xff"', NAR),
        ("a field of a megabyte", _LENGTH + b"\r\nX: " + b"a" * 1_000_000, NAR),
        ("an encoding", _LENGTH + b"\r\nContent-Encoding: gzip", NAR),
        ("a length with a sign", b"Content-Length: +5", NAR),
        ("a length in a list", b"Content-Length: 5, 5", NAR),
        ("a length that is too long", b"Content-Length: 1000", NAR),
        ("a length that is too short", b"Content-Length: 5", NAR),
        ("no length", b"X: y", NAR),
        ("chunks that are none", _CHUNKED, NAR),
        ("a chunk of 2^64 bytes", _CHUNKED, b"10000000000000000\r\n"),
        ("length and chunks", _LENGTH + b"\r\n" + _CHUNKED, b"5\r\nabcde\r\n0\r\n\r\n"),
        ("another answer behind it", _LENGTH, NAR + _answer(b"200 OK", b"Content-Length: 6", b"<html>")),
        ("cut, with a tag that is no header", _RESUMABLE + b'ETag: "a\x0bb"', NAR[:-20]),
        ("cut, with a tag that is no text", _RESUMABLE + b'ETag: "a\xffb"', NAR[:-20]),
        ("cut, with a date that is none", _RESUMABLE + b"Last-Modified: \x01", NAR[:-20]),
    )
}
ANSWERS: Final[dict[str, bytes]] = (
    OF_A_NAR
    | {
        f"a redirect to {address[:40]!r} {number}": _answer(
            b"307 x", b"Content-Length: 0\r\nLocation: " + address, b""
        )
        for number, address in enumerate(ADDRESSES)
    }
    | {
        f"a realm at {address[:40]!r} {number}": _answer(
            b"401 x", b'Content-Length: 0\r\nWWW-Authenticate: Bearer realm="' + address + b'"', b""
        )
        for number, address in enumerate(ADDRESSES)
    }
    | {
        f"{name}, {status.decode()}": _answer(status, fields)
        for name, fields in FIELDS.items()
        for status in (b"200 OK", b"206 x", b"404 x", b"416 x")
    }
    | {
        f"a wait of {value[:20]!r}": _answer(b"429 x", b"Content-Length: 2\r\nRetry-After: " + value)
        for value in RETRY_AFTERS
    }
    | {
        f"{name}, {status.decode()}": _answer(status, b"Content-Length: %d" % len(body), body)
        for name, body in BODIES.items()
        for status in (b"200 OK", b"403 x", b"429 x")
    }
    | {
        "a service that is no text": _answer(
            b"401 x",
            b'Content-Length: 0\r\nWWW-Authenticate: Bearer realm="http://127.0.0.1:1/t",service="\xe9"',
            b"",
        ),
        "a challenge that is none": _answer(b"401 x", b'Content-Length: 0\r\nWWW-Authenticate: "\xff\\', b""),
        "many challenges": _answer(
            b"401 x", b"Content-Length: 0" + b"\r\nWWW-Authenticate: Bearer a=b" * 100, b""
        ),
        "a date that is none": _answer(
            b"401 x", b"Content-Length: 0\r\nDate: 01 Jan 99999999999999999999 00:00:00 GMT", b""
        ),
        "a part that nobody asked for": _answer(b"206 x", _LENGTH + b"\r\nContent-Range: bytes 0-9/10", NAR),
        "not modified": _answer(b"304 x", b"X: y", b""),
        "a login": _answer(b"401 x", _LENGTH + b'\r\nWWW-Authenticate: Basic realm="x"', NAR),
        "a failure": _answer(b"500 x", _LENGTH, NAR),
        "status 99999": _answer(b"99999 x", _LENGTH, NAR),
        "status -1": _answer(b"-1 x", _LENGTH, NAR),
        "status 0": _answer(b"000 x", _LENGTH, NAR),
        "HTTP/9.9": _answer(b"200 OK", _LENGTH, NAR).replace(b"1.1", b"9.9", 1),
        "a thousand times 100": b"HTTP/1.1 100 x\r\n\r\n" * 1000 + _answer(b"200 OK", _LENGTH, NAR),
        "another protocol": b"220 smtp.example ESMTP\r\n",
        "status 999": _answer(b"999 x", b"Content-Length: 2"),
        "a reason that is no text": _answer(b"500 \xff\x1b[2J", b"Content-Length: 2"),
        "an upgrade": _answer(b"101 x", b"Upgrade: x\r\nConnection: upgrade"),
        "no HTTP": b"\x16\x03\x01\x02\x00",
        "nothing": b"",
    }
)
