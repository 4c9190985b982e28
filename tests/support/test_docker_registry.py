import http.client
from pathlib import Path

import pytest

from tests.support.docker_registry import DockerRegistry
from tests.support.skopeo import layout_blobs, skopeo_copy, write_layout

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
