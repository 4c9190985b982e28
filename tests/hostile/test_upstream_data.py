"""What an upstream may say: none of it becomes a header, a status or a request of ours."""

import zlib
from pathlib import Path

from nixcache_oci.clients.upstream.address import parse_upstream
from tests.hostile.answers import ANSWERS, NAR, OF_A_NAR
from tests.hostile.raw_client import converse, raw_upstream, whole
from tests.hostile.story import Tally
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.upstream_server import narinfo_text


def test_no_head_of_an_upstream_becomes_one_of_ours(tmp_path: Path, clients: Tally, data: Tally) -> None:
    """Header injection, wrong framing, redirects to anywhere: 404, or the bytes alone, or a cut."""
    del clients
    answers = {f"/nar/{number}.nar": answer for number, answer in enumerate(ANSWERS.values())}
    asked: list[str] = []
    with raw_upstream(answers, asked.append) as url:
        settings = {"NIXCACHE_REGISTRY": f"oci:{tmp_path}/none", "NIXCACHE_UPSTREAM": url}
        with ProxyProcess(tmp_path / "proxy", **settings) as proxy:
            key = parse_upstream(url).key
            for number, name in enumerate(ANSWERS):
                for line in ("GET", "HEAD"):
                    request = f"{line} /upstream/{key}/nar/{number}.nar HTTP/1.1\r\nHost: localhost\r\n\r\n"
                    [answer] = converse(proxy.host, [request.encode()], answers=1)
                    assert answer.status in {200, 404}, name
                    if name in OF_A_NAR and line == "GET" and answer.status == 200:
                        assert NAR.startswith(answer.body) or not answer.is_whole, name
            assert "Traceback" not in proxy.log
            assert "unexpected" not in proxy.log
    assert all(head.split(" ")[1].isprintable() for head in asked)
    data.add("answers without sense in place of a NAR", "404, the bytes alone, or a cut", times=len(ANSWERS))


GOOD = narinfo_text(hash_part_of("0"))
URLS = (
    *("", "//evil.example/x", "../x", "nar/../../x", "nar/%2e%2e/%2e%2e/x", "javascript:x", "nar/x\\y"),
    *("data:,x", "file:///etc/passwd", "nar/x y", "nar/\x00", "nar/\xff", "nar/..;/x", "http://[::1/x"),
    *("http:///x", "nar//x", "http://user@/x", "http://[::1]@/x", "nar/x\rSet-Cookie: a=b"),
    "nar/x\nSet-Cookie: a=b\n\nStorePath: /nix/store/x",
)
SIZES = ("0", "-1", "1.0", "1e3", "", " 1", "0x10", str(2**64), str(10**30), "9" * 5000)
NARINFOS: tuple[bytes, ...] = tuple(
    text.encode("latin-1")
    for text in (
        *("", "\n", "<html></html>", "404: Not Found", GOOD[:-1], GOOD + "\n", "\n" + GOOD),
        GOOD.replace("\n", "\r\n"),
        *(GOOD.replace("nar/hello.nar.zst", url) for url in URLS),
        *(GOOD.replace("zstd", value) for value in ("zstd\rX: y", "magic", "zstd ", "ZSTD", "zstd\0")),
        *(GOOD.replace("NarSize: 120", f"NarSize: {size}") for size in SIZES),
        GOOD.replace(hash_part_of("0"), hash_part_of("another")),
        GOOD.replace("/nix/store/", "/nix/store/../../etc/"),
        GOOD.replace("-hello-2.12", "-.."),
        GOOD.replace("-hello-2.12", "-hello/../../x"),
        GOOD + "StorePath: /nix/store/" + hash_part_of("another") + "-x\n",
        GOOD.replace("References: ", "References: ../../etc/passwd"),
        *(GOOD + line + "\n" for line in ("Deriver: ", "CA: fixed:x", "X: " + "a" * 2_000_000)),
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
