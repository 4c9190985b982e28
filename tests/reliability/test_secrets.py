"""Credentials stay here: everything that leaves the real programs is searched for them."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from aiohttp import web

from nixcache_oci.nix.signature import SecretKey
from tests.reliability.matrix import SECRET_MARK
from tests.reliability.results import Cell, write_suite
from tests.support.ghcr import GhcrDouble
from tests.support.journey import put, settings_of
from tests.support.nix import NixSandbox
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publisher import Machine
from tests.support.registries import Ghcr, RunningRegistry
from tests.support.server_thread import ServerThread

TOKEN = f"{SECRET_MARK}0123456789abcdef"
UPSTREAM_PASSWORD = "upstreamSECRET"
TROUBLES = {"none": "all is well", "once": "every request fails twice", "denied": "everything is refused"}
VERBS = (
    ("list", "--json"),
    ("list", "--roots"),
    ("info", "root"),
    ("pin", "create", "pinned", "root", "--keep-days", "1"),
    ("pin", "list"),
    ("gc", "--dry-run"),
    ("gc",),
    ("verify",),
    ("doctor",),
)


@pytest.fixture(scope="module")
def results() -> Iterator[list[Cell]]:
    cells: list[Cell] = []
    yield cells
    what = (
        "Both streams of every program at the debug level, the proxy's pages and errors, and every request"
        " that the storage and an upstream got, searched for the GitHub token, the registry's tokens, the"
        " signing key, signed addresses and an upstream's password."
    )
    write_suite(40, "Secrets", what, len(TROUBLES) + 1, cells)


@pytest.fixture
def secret_key() -> SecretKey:
    return SecretKey.generate("secret-1")


def assert_clean(text: str, ghcr: GhcrDouble, *more: str) -> None:
    for secret in (TOKEN, *ghcr.issued_tokens, *more, "sig=v"):
        if secret in text:  # not by assert: comparing long texts letter by letter takes minutes
            pytest.fail(text[max(0, text.index(secret) - 300) :][:600], pytrace=False)


def assert_storage_clean(ghcr: GhcrDouble) -> None:
    """What the other origin was sent: no token, neither in a head nor in an address."""
    for record in ghcr.requests:
        if record.operation.startswith("storage-"):
            assert_clean(f"{record.headers}", ghcr)
            assert TOKEN not in record.path
    assert ghcr.violations == []


@pytest.mark.needs("nix")
@pytest.mark.parametrize("trouble", TROUBLES)
def test_verbs_show_no_credentials(
    nix: NixSandbox, tmp_path: Path, secret_key: SecretKey, trouble: str, results: list[Cell]
) -> None:
    """At debug, on both streams, when all is well, when everything breaks once, and when all is refused."""
    with GhcrDouble(token=TOKEN) as server:
        ghcr: Ghcr = RunningRegistry(server, server.user, server.token)
        told = settings_of(ghcr, tmp_path)
        machine = Machine(
            tmp_path / "machine",
            nix,
            {**told, "NIX_SIGNING_KEY": secret_key.render(), "NIXCACHE_LOG_LEVEL": "debug"},
        )
        path = nix.build_file("root", b"a root")
        if trouble == "once":
            for operation in ("token", "tags", "manifest-get", "manifest-put", "upload-put", "storage-get"):
                server.fault(operation, "lost")
                server.fault(operation, "status", status=503)
        pushed = machine.run("push", path, "--root", "root").check()
        if trouble == "denied":
            server.deny("/v2/", "requested access to the resource is denied")
            pushed = machine.run("push", path, "--root", "root")
            assert pushed.status == 1
        with ThreadPoolExecutor(4) as pool:
            runs = [pushed, *pool.map(lambda verb: machine.run(*verb), VERBS)]
        secrets = (secret_key.render(), secret_key.render().partition(":")[2])
        for ran in runs:
            assert_clean(ran.stdout + ran.stderr, server, *secrets)
        assert any(ran.stderr for ran in runs)
        assert_storage_clean(server)
        # Where everything is denied, nobody is sent to the storage.
        assert trouble == "denied" or any(one.operation == "storage-get" for one in server.requests)
    results.append(
        Cell(
            f"programs that push, look, pin, collect and verify: {TROUBLES[trouble]}",
            len(runs),
            "nothing found",
        )
    )


def test_a_proxy_shows_no_credentials(tmp_path: Path, results: list[Cell]) -> None:
    """Not in its log at debug, its pages, its errors' bodies; an upstream gets nothing but its own."""
    heads: list[str] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        heads.append(f"{request.path_qs} {request.headers}")
        return web.Response(status=404)

    upstream = ServerThread(answer)
    upstream.start()
    with GhcrDouble(token=TOKEN) as server, contextlib.ExitStack() as stack:
        stack.callback(upstream.stop)
        ghcr: Ghcr = RunningRegistry(server, server.user, server.token)
        one = store_object("large", contents=bytes(range(256)) * 2000)
        put(ghcr, [one], in_packs=False)
        told = settings_of(ghcr, tmp_path)
        told["NIXCACHE_UPSTREAM"] = f"http://user:{UPSTREAM_PASSWORD}@127.0.0.1:{upstream.ports[0]}"
        told["NIXCACHE_LOG_LEVEL"] = "debug"
        proxy = stack.enter_context(ProxyProcess(tmp_path / "proxy", **told))
        proxy.wait_ready()
        shown = [proxy.ask(f"/{hash_part_of('large')}.narinfo").body.decode()]
        nar = f"/{one.compressed()[0].url}"
        assert proxy.ask(nar).status == 200
        for operation in ("token", "tags", "manifest-get", "blob-get", "storage-get"):
            server.expire_tokens()
            server.fault(operation, "status", status=403, times=None)
            for path, method in (
                (nar, "GET"),
                ("/_refresh", "POST"),
                ("/_status", "GET"),
                ("/metrics", "GET"),
            ):
                answered = proxy.ask(path, method=method)
                if path != nar:
                    shown.append(f"{answered.headers} {answered.body.decode()}")
            server.clear_faults()
        assert proxy.ask(f"/{hash_part_of('missing')}.narinfo").status == 404
        assert_clean(proxy.log + "".join(shown), server, UPSTREAM_PASSWORD)
        assert heads
        assert_clean("".join(heads), server)
        assert_storage_clean(server)
    results.append(
        Cell("a proxy that is asked while five kinds of requests are refused", 21, "nothing found")
    )
