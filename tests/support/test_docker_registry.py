import http.client
import json
from pathlib import Path

import pytest

from nixcache_oci.oci.digest import Digest
from tests.support.docker_registry import DockerRegistry
from tests.support.skopeo import layout_blobs, manifest_of, skopeo_copy, write_layout

REPOSITORY = "octocat/hello/nix-cache"

pytestmark = pytest.mark.needs("docker-registry")


def ask(host: str, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        with connection.getresponse() as answer:
            return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


@pytest.mark.needs("skopeo")
def test_skopeo_copies_in_and_out(tmp_path: Path) -> None:
    """The registry trusts our token service, and a restart keeps address and content."""
    write_layout(tmp_path / "layout", b"a layer " * 100_000)
    with DockerRegistry() as registry:
        image, credentials = (
            f"docker://{registry.host}/{REPOSITORY}:one",
            f"{registry.user}:{registry.password}",
        )
        skopeo_copy(f"oci:{tmp_path}/layout:one", image, f"--dest-creds={credentials}")
        host = registry.host
        registry.stop()
        with pytest.raises(ConnectionRefusedError):
            ask(host, "GET", "/v2/")
        registry.start()
        assert registry.host == host
        skopeo_copy(image, f"oci:{tmp_path}/back:one", f"--src-creds={credentials}")
    assert layout_blobs(tmp_path / "back") == layout_blobs(tmp_path / "layout")


def test_token_is_needed() -> None:
    """Without a token there is a challenge, and bad credentials get no token."""
    with DockerRegistry() as registry:
        status, headers, _ = ask(registry.host, "GET", "/v2/")
        assert status == 401
        assert 'service="test-registry"' in headers["Www-Authenticate"]
        realm = headers["Www-Authenticate"].split('"')[1]
        assert ask(realm.split("/")[2], "GET", "/token", Authorization="Basic eDp5")[0] == 401


@pytest.mark.needs("skopeo")
def test_garbage_collection(tmp_path: Path) -> None:
    """Blobs go that no manifest names; manifests without a tag only when asked; the disk is free again."""
    layers = [b"first ly" * 100_000, b"second l" * 100_000]
    digests = [Digest.of(manifest_of(layer)) for layer in layers]
    with DockerRegistry(auth=False) as registry:
        for layer, digest in zip(layers, digests, strict=True):
            write_layout(tmp_path / digest.hex, layer)
            skopeo_copy(f"oci:{tmp_path}/{digest.hex}:one", f"docker://{registry.host}/{REPOSITORY}:one")
        _, _, body = ask(registry.host, "GET", f"/v2/{REPOSITORY}/tags/list")
        assert json.loads(body)["tags"] == ["one"]
        registry.garbage_collect()
        assert registry.disk_usage() > 2 * len(layers[0])
        registry.garbage_collect(untagged=True)
        assert len(layers[0]) < registry.disk_usage() < 2 * len(layers[0])
        assert ask(registry.host, "DELETE", f"/v2/{REPOSITORY}/manifests/{digests[1]}")[0] == 202
        registry.garbage_collect()
        assert registry.disk_usage() < len(layers[0])
        assert ask(registry.host, "GET", f"/v2/{REPOSITORY}/blobs/{Digest.of(layers[1])}")[0] == 404


def test_delete_can_be_disabled() -> None:
    """Not every registry lets things be deleted."""
    with DockerRegistry(auth=False, delete=False) as registry:
        path = f"/v2/{REPOSITORY}/manifests/{Digest.of(b'')}"
        assert ask(registry.host, "DELETE", path)[0] == 405
