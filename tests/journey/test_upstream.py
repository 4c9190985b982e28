"""A real cache upstream: what is not here, Nix gets from there through the proxy, byte for byte."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixcache_oci.clients.upstream.address import parse_upstream
from nixcache_oci.nix.narinfo import NarInfo
from tests.support.cutting_line import CuttingLine
from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.upstream_server import refusing

pytestmark = pytest.mark.needs("nix", "nix-store", "nix-build", "nginx")

PATHS = 10
LARGE_BYTES = 3_000_000


@dataclass(frozen=True, slots=True)
class UpstreamCache:
    """A cache that Nix wrote and nginx serves; the last path is a large file."""

    url: str
    paths: list[str]
    public_key: str


@pytest.fixture
async def upstream(nix: NixSandbox, tmp_path: Path) -> AsyncIterator[UpstreamCache]:
    paths = nix.build_paths(PATHS)
    paths.append(nix.build_file("large", random.Random(5).randbytes(LARGE_BYTES)))
    secret, public = nix.generate_key("upstream-1")
    nix.sign(paths, secret)
    nix.copy_to(f"file://{tmp_path}/cache", paths).check()
    async with nginx(tmp_path / "nginx", tmp_path / "cache") as url:
        yield UpstreamCache(url, paths, public)


def settings(tmp_path: Path, *upstreams: str, nars: str = "stream") -> dict[str, str]:
    """A proxy whose own cache holds nothing yet."""
    return {
        "NIXCACHE_REGISTRY": f"oci:{tmp_path}/nothing",
        "NIXCACHE_UPSTREAM": " ".join(upstreams),
        "NIXCACHE_UPSTREAM_NARS": nars,
    }


@pytest.mark.parametrize("nars", ["stream", "direct"])
async def test_nix_substitutes_what_the_upstream_has(
    nix: NixSandbox, upstream: UpstreamCache, tmp_path: Path, nars: str
) -> None:
    """The upstream's signatures stay good; the bytes pass through here, or, in mode direct, do not."""
    with ProxyProcess(tmp_path / "proxy", **settings(tmp_path, upstream.url, nars=nars)) as proxy:
        run = nix.realise(
            upstream.paths, substituters=[proxy.url], trusted_keys=[upstream.public_key]
        ).check()
        for path in upstream.paths:
            assert nix.dump(path, run.store) == nix.dump(path)
        counters = proxy.status()["counters"]
        assert counters["upstream_hits"] >= PATHS + 1
        assert (counters["upstream_nar_bytes"] > LARGE_BYTES) == (nars == "stream")


async def test_a_dead_upstream_beside_it_costs_no_path(
    nix: NixSandbox, upstream: UpstreamCache, tmp_path: Path
) -> None:
    """What the living one has is a hit; what it has not is unknown, for the dead one might."""
    with ProxyProcess(tmp_path / "proxy", **settings(tmp_path, refusing(), upstream.url)) as proxy:
        run = nix.realise(
            upstream.paths, substituters=[proxy.url], trusted_keys=[upstream.public_key]
        ).check()
        for path in upstream.paths:
            assert nix.dump(path, run.store) == nix.dump(path)
        assert proxy.ask(f"/{'0' * 32}.narinfo").status == 404
        status = proxy.status()
        assert [one["state"] for one in status["upstreams"]] == ["open", "closed"]
        assert (status["counters"]["unknown"], status["counters"]["misses"]) == (1, 0)


async def test_nix_resumes_a_transfer_that_was_cut(
    nix: NixSandbox, upstream: UpstreamCache, tmp_path: Path
) -> None:
    """Nix asks for the rest with Range, and gets just that: the answer said that it may."""
    large = upstream.paths[-1]
    with (
        ProxyProcess(tmp_path / "proxy", **settings(tmp_path, upstream.url)) as proxy,
        CuttingLine(proxy.host, LARGE_BYTES // 2) as line,
    ):
        run = nix.realise([large], substituters=[line.url], trusted_keys=[upstream.public_key]).check()
        assert nix.dump(large, run.store) == nix.dump(large)
        assert line.is_cut
        # All anew would have been half as much again.
        assert line.came_back_bytes < LARGE_BYTES * 5 // 4
        narinfo = NarInfo.parse(proxy.ask(f"/{Path(large).name[:32]}.narinfo").body)
        whole = proxy.ask(f"/{narinfo.url}").body
        rest = proxy.ask(f"/{narinfo.url}", headers={"Range": "bytes=1000-"})
        assert (rest.status, rest.body) == (206, whole[1000:])
        assert rest.headers["Accept-Ranges"] == "bytes"
        beyond = proxy.ask(f"/{narinfo.url}", headers={"Range": f"bytes={len(whole)}-"})
        assert beyond.status == 416


async def test_a_path_that_leaves_the_upstream_is_not_there(upstream: UpstreamCache, tmp_path: Path) -> None:
    """However it is spelled, and whatever lies there."""
    with ProxyProcess(tmp_path / "proxy", **settings(tmp_path, f"{upstream.url}/nar")) as proxy:
        key = parse_upstream(f"{upstream.url}/nar").key
        for path in [
            "../nix-cache-info",
            "%2e%2e/nix-cache-info",
            "..%2fnix-cache-info",
            "x/..%5c..",
            "",
            "/",
        ]:
            answer = proxy.ask(f"/upstream/{key}/{path}")
            assert (answer.status, answer.body) == (404, b"Not Found\n")
        # What it may ask for, it passes on.
        name = next((tmp_path / "cache" / "nar").iterdir()).name
        assert proxy.ask(f"/upstream/{key}/{name}").status == 200
