"""Answers that make no sense, for every client alike: names, addresses, headers and framing."""

from typing import Final

EMPTY: Final = b"Content-Length: 0\r\n\r\n"

HOSTS: Final[tuple[bytes, ...]] = (
    b"a" * 300,  # longer than a name may be
    b"a" * 64 + b".example",  # a label of over 63 letters
    b".".join([b"a" * 60] * 60),
    b"xn--" + b"a" * 70,
    b"xn--\xff",
    b"xn--99999999999",
    b"xn--a.xn--",
    b"\xc3\xa4.example",
    b"\xe2\x80\x8b.example",
    b"\xff\xfe",
    b"a..b",
    b".a",
    b"-",
    b"%41%00",
    b"%",
    b"a\x7fb",
    b"a_b",
    b"[::1",
    b"[::1]]",
    b"[v1.x]",
    b"[fe80::1%25x]",
    b"::1",
    b"999.999.999.999",
    b"0x7f.1.1.1.1",
    b"1" * 40,
    b"a b",
    b"a,b",
    b"a@b@c",
    b"",
)
PORTS: Final[tuple[bytes, ...]] = (
    b":0",
    b":99999",
    b":-1",
    b":x",
    b":" + b"9" * 400,
    b":\xd9\xa3",
    b": 1",
    b"::",
)
ADDRESSES: Final[tuple[bytes, ...]] = (
    *(b"http://" + host + b"/t" for host in HOSTS),
    *(b"https://" + host + b"/t" for host in HOSTS),
    *(b"http://127.0.0.1" + port + b"/t" for port in PORTS),
    b"//h/t",
    b"//" + b"a" * 300 + b"/t",
    b"///",
    b"http:",
    b"http:/",
    b"http://",
    b"http://[",
    b"http:\\\\h\\t",
    b"?",
    b"#",
    b"",
    b" ",
    b"/\xff\xfe",
    b"/a b",
    b"/\x7f",
    b"/%",
    b"/%zz",
    b"/%ff",
    b"/" + b"a" * 8_000,
    b"/" + b"../" * 2_000,
    b"HTTP://h\xc3\xa4/",
    b"file:///etc/passwd",
    b"gopher://h:1/",
    b"javascript:x",
    b"http://user:secret@127.0.0.1:1/",
    b"http://:@127.0.0.1:1/",
    b"http://[::1]@/",
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
    b"9" * 400,
    b"-1",
    b"1e999",
    b"\xff",
    b"Fri, 31 Dec 9999 23:59:59 -2359",
    b"Mon, 01 Jan 0001 00:00:00 +2359",
    b"Mon, 01 Jan 0000 00:00:00 GMT",
    b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    b"01 Jan 2024 00:00:00 +9999999999",
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


ANSWERS: Final[dict[str, bytes]] = (
    {
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
        "status 999": _answer(b"999 x", b"Content-Length: 2"),
        "a reason that is no text": _answer(b"500 \xff\x1b[2J", b"Content-Length: 2"),
        "an upgrade": _answer(b"101 x", b"Upgrade: x\r\nConnection: upgrade"),
        "no HTTP": b"\x16\x03\x01\x02\x00",
        "nothing": b"",
    }
)
