"""Which addresses are public, as tables; and who may lead us to the others, with real servers.

The servers stand on two loopback addresses; which of them counts as public is handed in.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from yarl import URL

from nixcache_oci.clients.http.public_address import (
    is_known_private,
    is_public,
    literal_address,
    names_loopback,
)
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.errors import RegistryError, UpstreamError
from nixcache_oci.oci.digest import Digest
from tests.clients.registry_helper import opened
from tests.support.upstream_server import HASH_PART, Handler, asking, narinfo_text, serve

PUBLIC = "127.0.0.2"
PRIVATE = "127.0.0.1"
OF_REGISTRIES = ["redirect", "token service", "upload"]
OF_UPSTREAMS = ["narinfo", "nar"]


def only_public(address: str) -> bool:
    return address == PUBLIC


PUBLIC_ONES = "1.1.1.1 2606:4700::1111 ::ffff:1.1.1.1 64:ff9b::101:101"
OTHERS = (
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 100.64.0.1 169.254.169.254 0.0.0.0 224.0.0.1 240.0.0.1 "
    "255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:a9fe:a9fe ::127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: "
    "2001:0:53aa:64c:0:fb5c:80ff:fffe fe80::1 fe80::1%eth0 fec0::1 fc00::1 ff02::1 127.1 "
    "2130706433 example.org"
)


@pytest.mark.parametrize("address", f"{PUBLIC_ONES} {OTHERS}".split())
def test_public_addresses(address: str) -> None:
    """Only addresses of the open internet are public, also where IPv6 wraps an IPv4 address."""
    assert is_public(address) == (address in PUBLIC_ONES.split())


OF_THIS_MACHINE = (
    "127.0.0.1 127.1 127.0.1 2130706433 017700000001 0177.0.0.1 0x7f.1 0x7f000001 127.0.0.1. 2130706433."
)


@pytest.mark.parametrize(
    ("host", "literal"),
    [
        *((host, "127.0.0.1") for host in OF_THIS_MACHINE.split()),
        *(("0", "0.0.0.0"), ("::1", "::1"), ("fe80::1%lo", "fe80::1")),
        *(("localhost", None), ("example.org", None)),
    ],
)
def test_every_spelling_of_an_address_is_one(host: str, literal: str | None) -> None:
    """Whatever the resolver takes for an address is judged as one."""
    assert literal_address(host) == literal


LOOPBACK = "localhost LOCALHOST. a.localhost 127.9.9.9 0x7f.1 ::1 ::ffff:127.0.0.1"


@pytest.mark.parametrize("host", [*LOOPBACK.split(), "10.0.0.1", "localhost.example.org"])
def test_loopback_hosts(host: str) -> None:
    """No proxy is asked for this machine itself."""
    assert names_loopback(host) == (host in LOOPBACK.split())


@pytest.mark.parametrize(
    ("peer", "url", "expected"),
    [
        ("10.0.0.1", "https://a.example", True),
        ("1.1.1.1", "https://a.example", False),
        ("1.1.1.1", "https://10.0.0.1", False),
        ("::ffff:10.0.0.1", "https://a.example", True),
        ("fe80::1%eth0", "https://a.example", True),
        (None, "https://a.example", False),
        (None, "https://10.0.0.1", True),
        (None, "https://1.1.1.1", False),
        (None, "https://[fc00::1]", True),
    ],
)
def test_who_answered_is_known_by_the_connection(peer: str | None, url: str, *, expected: bool) -> None:
    """The address connected to counts, not the name's; behind an HTTP proxy, only what the name spells."""
    assert is_known_private(peer, URL(url), is_public) is expected


# Who leads where


class Inside:
    """A service that strangers must not reach."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.raw_path}")
        if "narinfo" in request.path:
            return web.Response(text=narinfo_text())
        return web.json_response(
            {"token": "t", "tags": ["inside"]}, status=201 if request.method == "PUT" else 200
        )


def leading(how: str, target: str) -> Handler:
    """Send on by what an answer names: a redirect, a token service, an upload's session."""

    async def answer(request: web.Request) -> web.Response:
        if how == "token service":
            if request.headers.get("Authorization") == "Bearer t":
                return web.json_response({"tags": ["a"]})
            challenge = f'Bearer realm="{target}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if how == "upload":
            status = 202 if request.method == "POST" else 404
            return web.Response(status=status, headers={"Location": f"{target}/session"})
        return web.Response(status=307, headers={"Location": f"{target}{request.path}"})

    return answer


@asynccontextmanager
async def registry_at(url: str) -> AsyncIterator[Registry]:
    host = url.removeprefix("http://")
    async with opened(host, None, push=True, patience=0, stall=5, is_public=only_public) as registry:
        yield registry


async def use(how: str, url: str) -> None:
    """Ask what is at a URL, in one of the ways that may lead elsewhere."""
    async with registry_at(url) as registry, asking(url, is_public=only_public) as upstreams:
        if how == "narinfo":
            assert await upstreams.find(HASH_PART) is not None
        elif how == "nar":
            async with upstreams.open_nar(parse_upstream(url).key, "nar/x.nar") as nar:
                assert [chunk async for chunk in nar.chunks]
        elif how == "upload":
            await registry.push_blob(Digest.of(b"x"), b"x")
        else:
            await registry.list_tags()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "[::ffff:127.0.0.1]", "localhost", "inside.example"]
)
@pytest.mark.parametrize("how", OF_REGISTRIES + OF_UPSTREAMS)
async def test_a_public_registry_cannot_send_us_to_a_private_address(
    how: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor an upstream: not by a redirect, a realm or an upload's address, in no spelling and by no name."""
    inside = Inside()
    resolve(monkeypatch, {"inside.example": [PRIVATE]})
    async with (
        serve(inside.answer, PRIVATE) as private,
        serve(leading(how, private.replace(PRIVATE, host)), PUBLIC) as url,
    ):
        with pytest.raises((RegistryError, UpstreamError), match="private address"):
            await use(how, url)
    assert inside.asked == []


@pytest.mark.parametrize(("own", "other"), [(PRIVATE, PRIVATE), (PRIVATE, PUBLIC), (PUBLIC, PUBLIC)])
@pytest.mark.parametrize("how", OF_REGISTRIES + OF_UPSTREAMS)
async def test_others_may_be_led_to(how: str, own: str, other: str) -> None:
    """A cache in the house may keep its NARs in the house, and each may keep them outside."""
    inside = Inside()
    async with serve(inside.answer, other) as target, serve(leading(how, target), own) as url:
        await use(how, url)
    assert len(inside.asked) == 1


async def test_a_connection_opened_ahead_is_guarded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage's name that turns to a private address is not even connected to."""
    addresses = {"storage.example": [PUBLIC]}
    resolve(monkeypatch, addresses)
    connected: list[str] = []

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append("inside")
        del reader
        writer.close()

    async def storage(_request: web.Request) -> web.Response:
        return web.Response(body=b"content", headers={"Connection": "close"})

    digest = Digest.of(b"content")
    async with serve(storage, PUBLIC) as url:
        port = URL(url).port
        target = f"http://storage.example:{port}"
        trap = await asyncio.start_server(inside, PRIVATE, port)
        async with serve(leading("redirect", target), PUBLIC) as own, registry_at(own) as registry:
            async with registry.open_blob(digest) as blob:
                assert b"".join([chunk async for chunk in blob.chunks]) == b"content"
            addresses["storage.example"] = [PRIVATE]
            monkeypatch.setattr("aiohttp.connector._DNSCacheTable.expired", lambda *_: True)
            with pytest.raises(RegistryError, match="private address"):
                async with registry.open_blob(digest):
                    pass
        trap.close()
        await trap.wait_closed()
    assert connected == []


# Upstreams


def resolve(monkeypatch: pytest.MonkeyPatch, addresses: dict[str, list[str]]) -> None:
    """Let names resolve to these addresses, the last one of each again and again."""
    real = socket.getaddrinfo

    def look_up(host: object, port: object, *rest: object, **named: object) -> object:
        found = addresses.get(str(host))
        if found is None:
            return real(host, port, *rest, **named)  # type: ignore[arg-type]  # as it came
        address = found[0] if len(found) == 1 else found.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(str(port))))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


async def test_an_upstream_is_judged_by_its_connection_not_by_another_look_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever owns the name may let it resolve to a private address the second time, and is still outside."""
    inside = Inside()
    resolve(monkeypatch, {"cache.example": [PUBLIC, PRIVATE]})
    async with (
        serve(inside.answer, PRIVATE) as private,
        serve(leading("narinfo", private), PUBLIC) as url,
        asking(url.replace(PUBLIC, "cache.example"), is_public=only_public) as upstreams,
    ):
        with pytest.raises(UpstreamError, match="private address"):
            await upstreams.find(HASH_PART)
    assert inside.asked == []


async def test_an_upstreams_own_name_may_not_turn_inwards_in_a_redirect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once an answer came from a public address, what it leads to is public: its own name as any other."""
    inside = Inside()
    resolve(monkeypatch, {"cache.example": [PUBLIC, PRIVATE]})
    monkeypatch.setattr("aiohttp.connector._DNSCacheTable.expired", lambda *_: True)
    async with serve(inside.answer, PRIVATE) as private:
        port = URL(private).port

        async def own(_request: web.Request) -> web.Response:
            headers = {"Location": f"http://cache.example:{port}/secret", "Connection": "close"}
            return web.Response(status=302, headers=headers)

        server = await asyncio.get_running_loop().create_server(web.Server(own), PUBLIC, port)  # type: ignore[arg-type]
        async with asking(f"http://cache.example:{port}", is_public=only_public) as upstreams:
            with pytest.raises(UpstreamError, match="private address"):
                await upstreams.find(HASH_PART)
        server.close()
    assert inside.asked == []


async def test_a_private_upstream_by_name_leads_to_private_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in the house has a name as well."""
    resolve(monkeypatch, {"cache.example": [PRIVATE]})
    async with serve(Inside().answer) as private, serve(leading("narinfo", private)) as url:
        await use("narinfo", url.replace(PRIVATE, "cache.example"))
