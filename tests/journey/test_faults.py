"""A line that breaks, bytes that are wrong: what a client gets is right and whole, or visibly broken."""

import hashlib
import random
from http.client import IncompleteRead
from pathlib import Path

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import put, settings_of
from tests.support.nix import NixSandbox
from tests.support.nix_objects import read_objects
from tests.support.objects import hash_part_of, store_object
from tests.support.proxy import ProxyProcess
from tests.support.publish import StoreObject
from tests.support.registries import Ghcr

LARGE = store_object("large", contents=random.Random(7).randbytes(3_000_000))


def narinfo_of(proxy: ProxyProcess, one: StoreObject) -> NarInfo:
    return NarInfo.parse(proxy.ask(f"/{one.narinfo.store_path.hash_part}.narinfo").body)


def test_a_cut_connection_is_not_the_clients_problem(ghcr: Ghcr, tmp_path: Path) -> None:
    """The stream goes on with a Range request from where it stopped: the client sees one unbroken NAR."""
    put(ghcr, [LARGE])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        narinfo = narinfo_of(proxy, LARGE)
        ghcr.server.fault("storage-get", "cut", after=1_000_000, times=2)
        ghcr.server.reset_requests()
        body = proxy.ask(f"/{narinfo.url}").body
        assert narinfo.file_hash is not None
        assert hashlib.sha256(body).digest() == narinfo.file_hash.digest
        assert ghcr.server.count("storage-get") == 3


@pytest.mark.parametrize("fault", ["wrong_byte", "corrupt"])
def test_a_wrong_byte_breaks_the_transfer(ghcr: Ghcr, tmp_path: Path, fault: str) -> None:
    """Never a whole wrong file; and 404 afterwards, so that Nix' resume ends gracefully."""
    put(ghcr, [LARGE])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        narinfo = narinfo_of(proxy, LARGE)
        if fault == "corrupt":
            ghcr.server.corrupt_blob(NarUrl.parse(narinfo.url).blob, 2_000_000)
        else:
            ghcr.server.fault("storage-get", "wrong_byte", after=2_999_990)
        with pytest.raises(IncompleteRead):
            proxy.ask(f"/{narinfo.url}")
        assert proxy.ask(f"/{narinfo.url}").status == 404
        assert proxy.ask(f"/{narinfo.url}", headers={"Range": "bytes=1000-"}).status == 404
        assert proxy.status()["counters"]["nars_cut"] == 1


def test_a_wrong_byte_in_a_pack_is_never_sent(ghcr: Ghcr, tmp_path: Path) -> None:
    """A pack is checked before any slice of it is served: 404 before the first byte."""
    small = store_object("small")
    put(ghcr, [small])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        # HEAD does not fetch ahead.
        assert proxy.ask(f"/{hash_part_of('small')}.narinfo", method="HEAD").status == 200
        ghcr.server.fault("storage-get", "wrong_byte", after=10)
        narinfo = narinfo_of(proxy, small)
        assert proxy.ask(f"/{narinfo.url}").status == 404


@pytest.mark.needs("nix")
def test_nix_does_not_add_what_is_wrong(ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """A flipped byte in the registry never becomes a store object."""
    path = nix.build_file("large", random.Random(3).randbytes(1_000_000))
    [built] = read_objects(nix, [path])
    put(ghcr, [built], [key])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        ghcr.server.corrupt_blob(NarUrl.parse(narinfo_of(proxy, built).url).blob, 500_000)
        run = nix.realise([path], substituters=[proxy.url], trusted_keys=[str(key.public_key)])
        assert run.returncode != 0
        # What it unpacked may lie there; it is no store object until Nix says so.
        assert nix.run("nix-store", "--check-validity", path, store=run.store).returncode != 0


@pytest.mark.needs("nix")
def test_nix_gets_a_whole_nar_over_a_line_that_keeps_breaking(
    ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Nix notices nothing, and NarHash agrees."""
    path = nix.build_file("large", random.Random(4).randbytes(2_000_000))
    put(ghcr, read_objects(nix, [path]), [key])
    with ProxyProcess(tmp_path / "proxy", **settings_of(ghcr, tmp_path)) as proxy:
        proxy.wait_ready()
        ghcr.server.fault("storage-get", "cut", after=300_000, times=4)
        run = nix.realise([path], substituters=[proxy.url], trusted_keys=[str(key.public_key)]).check()
        assert nix.dump(path, run.store) == nix.dump(path)
