"""Heads of requests: only what leaves no doubt is taken for anything."""

import pytest

from nixcache_oci.cache.nar_url import MAX_PACKED_NAR_BYTES, NarUrl
from nixcache_oci.oci.digest import Digest
from nixcache_oci.proxy.front.request_head import END_OF_HEAD, HeadReader, Shape

LETTERS = b"0123456789abcdfghijklmnpqrsvwxyz"
PLAIN = b"GET /" + LETTERS + b".narinfo HTTP/1.1\r\n"
HOST = b"Host: here\r\n"
PACK = Digest.of(b"pack")


def read(head: bytes) -> tuple[Shape, bytes | None]:
    reader = HeadReader(lambda host: host == "here")
    return reader.shape(head, 0, len(head)), reader.wanted_narinfo(head, 0, len(head))


@pytest.mark.parametrize(
    "fields",
    [
        HOST,
        b"hOsT:here \t\r\n",
        b"Accept: */*\r\nUser-Agent: curl/8 Nix/2.8\r\nAccept-Encoding: deflate, gzip\r\n" + HOST,
        HOST + b"Connection: Keep-Alive\r\n",
        HOST + b"Cache-Control: no-cache\r\nPragma:\r\n",
    ],
)
def test_what_nix_sends_is_plain(fields: bytes) -> None:
    """With nothing in it that could change the answer."""
    assert read(PLAIN + fields + b"\r\n") == (Shape.PLAIN, LETTERS)
    assert read(PLAIN.replace(b"GET", b"HEAD") + fields + b"\r\n") == (Shape.PLAIN, LETTERS)


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Host: elsewhere\r\n",
        b"Host:\r\n",
        HOST + HOST,
        HOST + b"Connection: close\r\n",
        HOST + b"Range: bytes=0-1\r\n",
        HOST + b"Origin: http://elsewhere\r\n",
    ],
)
def test_what_may_matter_is_not_plain(fields: bytes) -> None:
    """It has no body, and that is all that is said."""
    assert read(PLAIN + fields + b"\r\n") == (Shape.BODILESS, None)


@pytest.mark.parametrize(
    "line",
    [
        b"GET /nix-cache-info HTTP/1.1\r\n",
        b"GET /" + LETTERS.replace(b"z", b"e") + b".narinfo HTTP/1.1\r\n",
        b"GET /" + LETTERS + b".narinfo?x HTTP/1.1\r\n",
        b"GET /x" + LETTERS + b".narinfo HTTP/1.1\r\n",
        b"GET //" + LETTERS + b".narinfo HTTP/1.1\r\n",
    ],
)
def test_another_target_is_no_hash_part(line: bytes) -> None:
    """A plain request, but for something else."""
    assert read(line + HOST + b"\r\n") == (Shape.PLAIN, None)


@pytest.mark.parametrize(
    "head",
    [
        b"POST" + PLAIN[3:] + HOST,
        b"get" + PLAIN[3:] + HOST,
        b"GET  " + PLAIN[4:] + HOST,
        PLAIN.replace(b"/1.1", b"/1.0") + HOST,
        PLAIN.replace(b"/1.1", b"/2.0") + HOST,
        PLAIN.replace(b" /", b" http://elsewhere/") + HOST,
        PLAIN.replace(b"\r\n", b"\n") + HOST,
        b"\r\n" + PLAIN + HOST,
        PLAIN + HOST + b"Content-Length: 0\r\n",
        PLAIN + HOST + b"tRANSFER-eNCODING: chunked\r\n",
        PLAIN + HOST + b"Expect: 100-continue\r\n",
        PLAIN + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n",
        PLAIN + HOST + b"Connection: keep-alive, close\r\n",
        PLAIN + HOST + b"X: y\n",
        PLAIN + HOST + b"X : y\r\n",
        PLAIN + HOST + b"X: y\r\n z\r\n",
        PLAIN + HOST + b"X: \x00\r\n",
        PLAIN + HOST + b"X: \xff\r\n",
        PLAIN + HOST + b": x\r\n",
        PLAIN + HOST + b"x\r\n",
        PLAIN + HOST + b"X: " + b"y" * 5000 + b"\r\n",
    ],
)
def test_doubt_is_left_to_the_library(head: bytes) -> None:
    """A body, another protocol, or a head that two readers could read in two ways."""
    assert read(head + b"\r\n") == (Shape.OTHER, None)


def test_a_head_is_read_where_it_lies() -> None:
    """What stands around it plays no part."""
    before, head = b"GET / HTTP/1.1\r\n\r\n", PLAIN + HOST + b"\r\n"
    data = before + head + b"X: y\r\n\r\n"
    assert data.find(END_OF_HEAD, len(before)) + len(END_OF_HEAD) == len(before + head)
    reader = HeadReader(lambda _host: True)
    assert reader.shape(data, len(before), len(before + head)) is Shape.PLAIN
    assert reader.wanted_narinfo(data, len(before), len(before + head)) == LETTERS


def read_slice(target: str, fields: bytes = HOST, method: bytes = b"GET") -> NarUrl | None:
    head = method + b" " + target.encode() + b" HTTP/1.1\r\n" + fields + b"\r\n"
    return HeadReader(lambda host: host == "here").wanted_slice(head, 0, len(head))


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("suffix", ["", ".zst", ".xz", ".Z"])
def test_a_slice_of_a_pack_is_told(method: bytes, suffix: str) -> None:
    """As narinfos name it, whatever its compression."""
    url = NarUrl(PACK, 20, MAX_PACKED_NAR_BYTES, suffix)
    assert read_slice(f"/{url}", method=method) == url


@pytest.mark.parametrize(
    "target",
    [
        f"/nar/{PACK.hex}.nar.zst",
        f"/nar/{PACK.hex}/20-0.nar.zst",
        f"/nar/{PACK.hex}/020-5.nar.zst",
        f"/nar/{PACK.hex}/20-{MAX_PACKED_NAR_BYTES + 1}.nar.zst",
        f"/nar/{PACK.hex}/20-5.nar.zst.xz",
        f"/nar/{PACK.hex}/20-5.nar?x",
        f"/nar/{PACK.hex}/20-5.nar/",
        f"/nar/{PACK.hex.upper()}/20-5.nar",
        f"//nar/{PACK.hex}/20-5.nar",
    ],
)
def test_another_target_is_no_slice(target: str) -> None:
    """The library answers it, and refuses it for the same reasons."""
    assert read_slice(target) is None


@pytest.mark.parametrize(
    "fields", [b"Host: elsewhere\r\n", HOST + b"Range: bytes=1-\r\n", HOST + b"Connection: close\r\n"]
)
def test_a_slice_with_conditions_is_left_to_the_library(fields: bytes) -> None:
    """As is every request that is not plain."""
    assert read_slice(f"/nar/{PACK.hex}/20-5.nar", fields) is None
