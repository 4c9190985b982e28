"""Uploads that are wrong: refused with a text, in a way that every Nix survives, and the next one works."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.nar import File, dump_tree
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey, fingerprint
from nixcache_oci.proxy.endpoints.uploads import MOST_DROPPED_BYTES, MOST_QUERY_BYTES
from nixcache_oci.proxy.uploads.intake import FREE_NAR_BYTES
from nixcache_oci.proxy.uploads.receiver import MOST_SIGNATURES
from tests.support.objects import hash_part_of, store_object
from tests.support.uploads import BEARER, TOKEN, Sent, UploadProxy, upload_settings

KEY = SecretKey.generate("uploads-1")
OTHER = Sent.of(store_object("other"))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UploadProxy]:
    folder = tmp_path_factory.mktemp("uploads")
    with UploadProxy(folder / "proxy", **upload_settings(folder / "cache", KEY)) as running:
        running.wait_ready()
        yield running


@pytest.fixture(autouse=True)
def the_next_one_works(proxy: UploadProxy, request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever came before."""
    yield
    assert proxy.upload(Sent.of(store_object(f"after {request.node.name}".translate(_PLAIN)))) == [200, 200]


_PLAIN = {ord(character): "-" for character in " []"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong-token-of-somebody"}, 403),
        ({"Authorization": f"Bearer {TOKEN}x"}, 403),
        ({"Authorization": "Basic !!"}, 403),
        ({"Authorization": "Negotiate abc"}, 403),
        ({**BEARER, "Origin": "http://evil.example"}, 403),
        ({**BEARER, "Sec-Fetch-Site": "same-origin"}, 403),
        ({**BEARER, "Host": "evil.example"}, 403),
    ],
)
def test_who_may_not_write_is_told_before_the_body(
    proxy: UploadProxy, headers: dict[str, str], status: int
) -> None:
    """Nothing of a refused upload is kept, and a body that waits for 100 Continue is never asked for."""
    sent = Sent.of(store_object("not-allowed"))
    for path in (f"/{sent.narinfo.url}", sent.path, "/x.ls", "/nix-cache-info"):
        assert proxy.put(path, b"x", headers).status == status
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": proxy.host, **headers}.items())
    with socket.create_connection(tuple(proxy.host.split(":"))) as client:  # type: ignore[arg-type]
        head = f"PUT /{sent.narinfo.url} HTTP/1.1\r\n{lines}Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(2**16).startswith(f"HTTP/1.1 {status}".encode())
    assert proxy.ask(f"/{sent.narinfo.url}", method="HEAD").status == 404


def _bomb() -> Sent:
    """A NAR of one file of zeros, over what may be unpacked of so few bytes."""
    size = FREE_NAR_BYTES + 2**30
    head = next(iter(dump_tree(File(b""))))
    start = head[: head.index(b"contents") + 8] + size.to_bytes(8, "little")
    compressor = zstandard.ZstdCompressor().compressobj()
    piece = bytes(2**24)
    content = compressor.compress(start) + b"".join(
        compressor.compress(piece) for _ in range(size // len(piece))
    )
    return OTHER.with_content(content + compressor.flush())


def test_nars_that_are_wrong(proxy: UploadProxy) -> None:
    """Each is refused at its own PUT, with 400 or 413."""
    good = Sent.of(store_object("nar"))
    for name, url, content, status in [
        ("another FileHash", OTHER.narinfo.url, good.content, 400),
        ("no NAR", *_url_and_content(good.with_content(zstandard.compress(b"no NAR"))), 400),
        ("not compressed", *_url_and_content(good.with_content(b"no zstd")), 400),
        ("cut short", *_url_and_content(good.with_content(good.content[:-5])), 400),
        ("something behind it", *_url_and_content(good.with_content(good.content + b"more")), 400),
        ("a bomb", *_url_and_content(_bomb()), 400),
        ("gzip", *_url_and_content(good.with_content(good.content, "gzip")), 400),
        ("unknown suffix", good.narinfo.url + "x", good.content, 400),
        ("in a folder", "nar/x/y.nar", good.content, 405),
        ("empty", good.narinfo.url, b"", 413),
    ]:
        answer = proxy.put(f"/{url}", content)
        assert answer.status == status, (name, answer.body)
        assert proxy.ask(f"/{url}", method="HEAD").status == 404, name


def _url_and_content(sent: Sent) -> tuple[str, bytes]:
    return sent.narinfo.url, sent.content


def test_narinfos_that_are_wrong(proxy: UploadProxy) -> None:
    """Each is refused with a text that says what is wrong, and is not served."""
    one = Sent.of(store_object("narinfo"))
    assert proxy.put(f"/{one.narinfo.url}", one.content).status == 200
    narinfo = one.narinfo
    wrong_hash = NixHash(bytes(32))
    for changed, text in [
        (replace(narinfo, nar_hash=wrong_hash), b"another NarHash"),
        (replace(narinfo, nar_size=7), b"another NarSize"),
        (replace(narinfo, file_size=7), b"another FileSize"),
        (replace(narinfo, file_hash=wrong_hash), b"upload both again"),
        (replace(narinfo, file_hash=None), b"no FileHash"),
        (replace(narinfo, compression="xz"), b"another Compression"),
        (replace(narinfo, references=(f"{hash_part_of('nobody')}-nobody",)), b"which nobody has"),
        (replace(narinfo, store_path=replace(narinfo.store_path, store_dir="/gnu/store")), b"/nix/store"),
        (replace(narinfo, store_path=OTHER.narinfo.store_path), b"another path than its URL"),
    ]:
        answer = proxy.put(one.path, changed.render().encode())
        assert answer.status == 400
        assert text in answer.body
    for body in (b"", b"\n", b"StorePath: x\n", bytes(100), b"x" * (2**20 + 1)):
        assert proxy.put(one.path, body).status in (400, 413)
    assert proxy.put("/short.narinfo", narinfo.render().encode()).status == 400
    assert proxy.ask(one.path).status == 404
    assert proxy.put(one.path, narinfo.render().encode()).status == 200


def test_a_client_that_goes_away_leaves_nothing(proxy: UploadProxy) -> None:
    """Half a body is no NAR: its temporary file goes, and so does its space."""
    sent = Sent.of(store_object("half", contents=bytes(range(256)) * 4096), "none")
    before = proxy.status()["uploads"]["bytes"]
    with socket.create_connection(tuple(proxy.host.split(":"))) as client:  # type: ignore[arg-type]
        head = (
            f"PUT /{sent.narinfo.url} HTTP/1.1\r\nHost: {proxy.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
            f"Content-Length: {len(sent.content)}\r\n\r\n"
        )
        client.sendall(head.encode() + sent.content[: len(sent.content) // 2])
        proxy.wait_until(lambda status: status["uploads"]["bytes"] >= before + len(sent.content))
    proxy.wait_until(lambda status: status["uploads"]["bytes"] < before + len(sent.content))
    [spool] = (proxy.folder.parent / "cache/spool").iterdir()
    assert list((spool / "incoming").iterdir()) == []
    assert "spool not written" not in proxy.log


def test_two_clients_with_the_same_path_at_once(proxy: UploadProxy) -> None:
    """Both succeed, and both signatures are kept."""
    one = Sent.of(store_object("twice", contents=bytes(10**6)))
    keys = [SecretKey.generate(f"client-{number}") for number in range(2)]
    clients = [
        replace(one, narinfo=replace(one.narinfo, sigs=(key.sign(fingerprint(one.narinfo)),))) for key in keys
    ]
    statuses: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda each=each: statuses.append(proxy.upload(each))) for each in clients
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [[200, 200]] * 2
    proxy.wait_published()
    sigs = {sig.key_name for sig in NarInfo.parse(proxy.ask(one.path).body).sigs}
    assert sigs == {"client-0", "client-1", KEY.name}


def test_what_is_not_kept_is_accepted(proxy: UploadProxy) -> None:
    """A refusal would end the copy; absent files are 404, for HEAD 405 would end it, too."""
    for path in (
        f"/{hash_part_of('x')}.ls",
        "/log/x.drv",
        "/debuginfo/abc.debug",
        "/realisations/sha256:abc%21out.doi",
        "/build-trace-v2/x/out.doi",
        "/nix-cache-info",
    ):
        assert proxy.put(path, b"text").status == 200
        if path != "/nix-cache-info":
            assert proxy.ask(path).status == proxy.ask(path, method="HEAD").status == 404


def test_a_refusal_amid_a_body_is_told(proxy: UploadProxy) -> None:
    """Cut while it sends, Nix would try again, and 2.8 hangs: the rest is read, then comes the answer."""
    content = b"no NAR" * 2**20
    digest = hashlib.sha256(content).hexdigest()
    head = (
        f"PUT /nar/{digest}.nar HTTP/1.1\r\nHost: {proxy.host}\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(tuple(proxy.host.split(":"))) as client:  # type: ignore[arg-type]
        client.sendall(head.encode() + content)
        assert client.recv(2**16).startswith(b"HTTP/1.1 400")
        # The connection goes on.
        client.sendall(f"GET /nix-cache-info HTTP/1.1\r\nHost: {proxy.host}\r\n\r\n".encode())
        assert b"200 OK" in client.recv(2**16)


@pytest.mark.parametrize(
    ("method", "path", "most"),
    [("PUT", "/log/long.drv", MOST_DROPPED_BYTES), ("POST", "/mass-query", MOST_QUERY_BYTES)],
    ids=["log", "query"],
)
def test_other_bodies_are_bounded(proxy: UploadProxy, method: str, path: str, most: int) -> None:
    """Also those that are read and dropped."""
    body = bytes(most + 1)
    answer = proxy.put(path, body) if method == "PUT" else proxy.post(path, body)
    assert answer.status == 413


def test_signatures_are_bounded(proxy: UploadProxy) -> None:
    """Whoever may upload may not make a narinfo grow without end."""
    one = Sent.of(store_object("often-signed"))
    assert proxy.upload(one) == [200, 200]
    keys = [SecretKey.generate(f"client-{number}") for number in range(MOST_SIGNATURES)]
    sigs = tuple(key.sign(fingerprint(one.narinfo)) for key in keys)
    for most, status in ((len(sigs), 400), (3, 200)):
        answer = proxy.put(one.path, replace(one.narinfo, sigs=sigs[:most]).render().encode())
        assert answer.status == status
    assert len(NarInfo.parse(proxy.ask(one.path).body).sigs) == 4


def test_without_a_key_unsigned_paths_are_refused(tmp_path: Path) -> None:
    """Nobody would vouch for them; signed ones are taken with the signature that they have."""
    one = Sent.of(store_object("unsigned"))
    key = SecretKey.generate("client-1")
    signed = replace(one, narinfo=replace(one.narinfo, sigs=(key.sign(fingerprint(one.narinfo)),)))
    with UploadProxy(tmp_path / "proxy", **upload_settings(tmp_path / "cache", None)) as proxy:
        proxy.wait_ready()
        assert proxy.upload(one) == [200, 400]
        assert proxy.upload(signed) == [200, 200]
        proxy.wait_published()
        assert [sig.key_name for sig in NarInfo.parse(proxy.ask(one.path).body).sigs] == ["client-1"]


def test_a_full_spool_refuses_until_it_is_published(tmp_path: Path) -> None:
    """413, not 507: at 5xx some versions of Nix hang."""
    settings = upload_settings(tmp_path / "cache", KEY, NIXCACHE_UPLOAD_SPACE="1M")
    large, small = (
        Sent.of(store_object(f"of-{size}", contents=bytes(size)), "none") for size in (2**20, 2**19)
    )
    with UploadProxy(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        assert proxy.put(f"/{large.narinfo.url}", large.content).status == 413
        assert proxy.upload(small) == [200, 200]


def test_without_a_rule_nobody_may_write(tmp_path: Path) -> None:
    """The text names the setting."""
    settings = upload_settings(tmp_path / "cache", KEY, NIXCACHE_UPLOAD_TOKENS_FILE="")
    with UploadProxy(tmp_path / "proxy", **settings) as proxy:
        answer = proxy.put(OTHER.path, b"x")
        assert (answer.status, b"NIXCACHE_UPLOAD_TOKENS_FILE" in answer.body) == (403, True)
