"""An upstream with a password: no client can have the proxy use it for what no narinfo named."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.nix.narinfo import NarInfo
from tests.support.objects import hash_part_of
from tests.support.proxy import ProxyProcess
from tests.support.server_thread import ServerThread
from tests.support.upstream_server import narinfo_text

KNOWN = hash_part_of("private")
NAMED = "files/42?version=7"
REMEMBERED = f"nar/{'0' * 52}.nar.xz"


@dataclass(slots=True)
class Private:
    """An upstream that answers everything to who has the password, and remembers what that was."""

    url: str = ""
    asked: list[str] = field(default_factory=list)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Authorization") is None:
            return web.Response(status=401)
        if request.path.endswith(f"/{KNOWN}.narinfo"):
            return web.Response(text=narinfo_text(KNOWN, NAMED))
        self.asked.append(request.raw_path)
        return web.Response(text="private\n")


@pytest.fixture
def private() -> Iterator[Private]:
    upstream = Private()
    server = ServerThread(upstream.answer)
    server.start()
    upstream.url = f"http://ci:secret@127.0.0.1:{server.ports[0]}/base"
    yield upstream
    server.stop()


def proxy_of(folder: Path, *upstreams: str) -> ProxyProcess:
    return ProxyProcess(
        folder / "proxy", NIXCACHE_REGISTRY=f"oci:{folder}/none", NIXCACHE_UPSTREAM=" ".join(upstreams)
    )


def test_only_what_a_narinfo_named_is_fetched(tmp_path: Path, private: Private) -> None:
    """By no path, query, code or method that a client makes up; and what is not fetched is not there."""
    with proxy_of(tmp_path, private.url) as proxy:
        url = NarInfo.parse(proxy.ask(f"/{KNOWN}.narinfo").body).url
        _, key, code, _ = url.split("/", 3)
        for path in [
            *("api/users?page=1", "admin/delete?id=7", "files/42", "files/43?version=7"),
            "files/42?version=8",
            *("nar/../x", "nar/x.nar", f"{KNOWN}.narinfo", f"{REMEMBERED}?delete=1", f"x/{REMEMBERED}"),
        ]:
            for place in (path, f"{code}/{path}", f"mac-{'0' * 32}/{path}", f"{code}/{code}/{path}"):
                for method in ("GET", "HEAD"):
                    assert proxy.ask(f"/upstream/{key}/{place}", method=method).status == 404
                assert proxy.ask(f"/upstream/{key}/{place}", method="POST").status == 405
        assert private.asked == []
        assert proxy.ask(f"/{url}").body == b"private\n"
        assert private.asked == [f"/base/{NAMED}"]
        status = proxy.ask("/_status").body.decode() + proxy.ask("/metrics").body.decode()
        assert "secret" not in status + proxy.log
        assert key not in status


def test_urls_outlive_the_proxy_and_its_settings(tmp_path: Path, private: Private) -> None:
    """Nix remembers them for 30 days: over restarts, other upstreams, and from before there were codes."""
    with proxy_of(tmp_path, private.url) as proxy:
        url = NarInfo.parse(proxy.ask(f"/{KNOWN}.narinfo").body).url
    other = private.url.replace("/base", "/other")
    with proxy_of(tmp_path, other, private.url) as proxy:
        assert proxy.ask(f"/{url}").body == b"private\n"
        assert proxy.ask(f"/upstream/{parse_upstream(private.url).key}/{REMEMBERED}").body == b"private\n"
    assert private.asked == [f"/base/{NAMED}", f"/base/{REMEMBERED}"]
    with proxy_of(tmp_path, other) as proxy:
        assert proxy.ask(f"/{url}").status == 404
