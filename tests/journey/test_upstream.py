"""A real cache upstream: what is not here, Nix gets from there through the proxy, byte for byte."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nixcache_oci.nix.narinfo import NarInfo
from tests.support.nginx import nginx
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.slow_line import CuttingLine

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
