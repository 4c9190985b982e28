"""``nix copy --to`` the proxy: served at once, published, and substituted through the registry."""

from pathlib import Path

import pytest

from nixcache_oci.nix.signature import SecretKey
from tests.support.nix import NixSandbox
from tests.support.proxy import ProxyProcess
from tests.support.uploads import UploadProxy, upload_settings

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
