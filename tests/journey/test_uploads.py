"""``nix copy --to`` the proxy: served at once, published, and substituted through the registry."""

import random
from pathlib import Path

import pytest

from nixcache_oci.cache.nar_url import NarUrl
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from tests.support.journey import settings_of
from tests.support.nix import NixSandbox
from tests.support.objects import store_object
from tests.support.proxy import ProxyProcess
from tests.support.registries import Ghcr
from tests.support.uploads import TOKEN, Sent, UploadProxy, upload_settings

pytestmark = pytest.mark.needs("nix")


def _copy(nix: NixSandbox, url: str, *paths: str, netrc: Path | None = None) -> str:
    options = {"netrc-file": str(netrc)} if netrc is not None else {}
    environment = nix.environment(options=options)
    return nix.run("nix", "copy", "--to", url, *paths, environment=environment).check().stderr


@pytest.mark.parametrize("compression", ["zstd", "xz", "none"])
def test_what_is_copied_is_served_at_once_and_published(
    nix: NixSandbox, key: SecretKey, tmp_path: Path, compression: str
) -> None:
    """Every compression; another proxy, which has only the registry, serves it signed."""
    paths = nix.build_paths(20)
    settings = upload_settings(tmp_path / "cache", key)
    with UploadProxy(tmp_path / "proxy", **settings, NIXCACHE_LOG_LEVEL="debug") as proxy:
        _copy(nix, f"{proxy.url_with_password}?compression={compression}", *paths)
        for path in paths:
            assert proxy.ask(f"/{Path(path).name[:32]}.narinfo").status == 200
        proxy.wait_published()
    with ProxyProcess(tmp_path / "other", NIXCACHE_REGISTRY=settings["NIXCACHE_REGISTRY"]) as other:
        other.wait_ready()
        copied = nix.realise(paths, substituters=[other.url], trusted_keys=[str(key.public_key)])
        assert copied.returncode == 0, copied.stderr
        assert other.status()["entries"] == len(paths)


def test_a_large_path_among_small_ones_by_netrc(
    ghcr: Ghcr, nix: NixSandbox, key: SecretKey, tmp_path: Path
) -> None:
    """Through a registry, signed by the client as well; copied again, nothing is sent."""
    large = nix.build_file("large", random.Random(1).randbytes(8 * 2**20))
    paths = [*nix.build_paths(10), large]
    secret, public = nix.generate_key("client-1")
    settings = upload_settings(tmp_path / "cache", key)
    with UploadProxy(tmp_path / "proxy", **{**settings, **settings_of(ghcr, tmp_path)}) as proxy:
        netrc = tmp_path / "netrc"
        netrc.write_text(f"machine 127.0.0.1 login any password {TOKEN}\n")
        _copy(nix, f"{proxy.url}?secret-key={secret}&compression=zstd", *paths, netrc=netrc)
        proxy.wait_published()
        received = proxy.status()["counters"]["uploaded_bytes"]
        _copy(nix, proxy.url, *paths)  # without a token: it has nothing to write
        assert proxy.status()["counters"]["uploaded_bytes"] == received
    with ProxyProcess(tmp_path / "other", **settings_of(ghcr, tmp_path)) as other:
        other.wait_ready()
        copied = nix.realise(paths, substituters=[other.url], trusted_keys=[public])
        assert copied.returncode == 0, copied.stderr
        assert nix.dump(large, copied.store) == nix.dump(large)


def test_a_wrong_token_is_told_in_one_line(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """Nix shows the text of the answer, gives up at once, and nothing is kept."""
    [path] = nix.build_paths(1)
    with UploadProxy(tmp_path / "proxy", **upload_settings(tmp_path / "cache", key)) as proxy:
        for url, text in [
            (proxy.url.replace("//", "//any:wrong-token-of-somebody@"), "not one that may upload"),
            (proxy.url, "uploads need a password from nixcache-oci login"),
        ]:
            refused = nix.copy_to(url, [path])
            assert refused.returncode == 1
            assert text in refused.stderr
        assert proxy.status()["uploads"]["bytes"] == 0


def test_nix_store_sign_and_copy_log(nix: NixSandbox, key: SecretKey, tmp_path: Path) -> None:
    """A signature is added to a published path, whose NAR is in a pack; a log is accepted."""
    [path] = nix.build_paths(1)
    secret, _public = nix.generate_key("reviewer-1")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login any password {TOKEN}\n")
    with UploadProxy(tmp_path / "proxy", **upload_settings(tmp_path / "cache", key)) as proxy:
        _copy(nix, proxy.url, path, netrc=netrc)
        proxy.wait_published()
        narinfo = f"/{Path(path).name[:32]}.narinfo"
        assert b"reviewer-1" not in proxy.ask(narinfo).body
        environment = nix.environment(options={"netrc-file": str(netrc)})
        sign = ["store", "sign", "--key-file", str(secret), path]
        nix.run("nix", *sign, "--store", proxy.url, environment=environment).check()
        proxy.wait_until(lambda _: b"reviewer-1" in proxy.ask(narinfo).body)
        proxy.wait_published()
        assert NarUrl.parse(NarInfo.parse(proxy.ask(narinfo).body).url).offset is not None
        log = nix.run("nix", "store", "copy-log", "--to", proxy.url, path, environment=environment)
        assert log.returncode == 0, log.stderr
        assert log.stderr == ""


def test_a_nar_keeps_its_url_when_it_went_into_a_pack(key: SecretKey, tmp_path: Path) -> None:
    """Nix remembers a narinfo for 30 days, and asks for the URL that it had; also after a restart.

    Before it uploads, it asks by HEAD: then only what is in the spool counts, for another path may have it.
    """
    one = Sent.of(store_object("small"))
    settings = upload_settings(tmp_path / "cache", key)
    with UploadProxy(tmp_path / "proxy", **{**settings, "NIXCACHE_UPLOAD_QUIET": "2"}) as proxy:
        proxy.wait_ready()
        assert proxy.upload(Sent.of(store_object("beside-it"))) == [200, 200]
        assert proxy.upload(one) == [200, 200]
        url = f"/{NarInfo.parse(proxy.ask(one.path).body).url}"
        for spelling in (url, f"/{one.narinfo.url}"):
            assert proxy.ask(spelling).body == one.content
            assert proxy.ask(spelling, headers={"Range": "bytes=3-5"}).body == one.content[3:6]
            assert proxy.ask(spelling, method="HEAD").status == 200
        proxy.wait_published()
        assert NarInfo.parse(proxy.ask(one.path).body).url != url[1:]
    with UploadProxy(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        assert proxy.ask(url).body == one.content
        assert proxy.ask(f"/{one.narinfo.url}").body == one.content
        assert proxy.ask(f"/{one.narinfo.url}", method="HEAD").status == 404


def test_mass_query(key: SecretKey, tmp_path: Path) -> None:
    """Those that the cache or the spool has; nobody needs a token to ask."""
    one, other = Sent.of(store_object("one")), store_object("other")
    parts = [str(each.store_path.hash_part) for each in (one.narinfo, other.narinfo)]
    settings = upload_settings(tmp_path / "cache", key, NIXCACHE_UPLOAD_QUIET="2")
    with UploadProxy(tmp_path / "proxy", **settings) as proxy:
        proxy.wait_ready()
        assert proxy.upload(one) == [200, 200]
        for _ in range(2):
            answer = proxy.post("/mass-query", "".join(f"{part}\n" for part in parts).encode())
            assert (answer.status, answer.body.decode()) == (200, f"{parts[0]}\n")
            proxy.wait_published()
        assert proxy.post("/mass-query", b"no hash part").status == 400
        assert proxy.post("/mass-query", b"x" * 2**21).status == 413
