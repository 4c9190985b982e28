"""A proxy that takes uploads into an OCI layout, and what a client sends it."""

import hashlib
import http.client
import lzma
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import zstandard

from nixcache_oci.cache.nar_url import SUFFIXES
from nixcache_oci.nix.hash import NixHash
from nixcache_oci.nix.narinfo import NarInfo
from nixcache_oci.nix.signature import SecretKey
from tests.support.proxy import Answer, ProxyProcess
from tests.support.publish import StoreObject

TOKEN = "token-of-the-builder"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def upload_settings(folder: Path, key: SecretKey | None, **more: str) -> dict[str, str]:
    """What a proxy is told that publishes at once what is uploaded."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = folder / "tokens"
    tokens.write_text(f"# who may upload\nbuilder:{TOKEN}\n")
    settings = {
        "NIXCACHE_REGISTRY": f"oci:{folder / 'layout'}",
        "NIXCACHE_UPLOADS": "1",
        "NIXCACHE_UPLOAD_TOKENS_FILE": str(tokens),
        "NIXCACHE_UPLOAD_QUIET": "0.2",
        "NIXCACHE_UPLOAD_DIR": str(folder / "spool"),
    }
    if key is not None:
        secret = folder / "key.sec"
        secret.write_text(key.render())
        settings["NIXCACHE_SIGNING_KEY_FILE"] = str(secret)
    return {**settings, **more}


class UploadProxy(ProxyProcess):
    """One that takes uploads."""

    def put(self, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send one file, as the builder unless told."""
        return self._send("PUT", path, body, BEARER if headers is None else headers)

    def post(self, path: str, body: bytes) -> Answer:
        """Ask with a body, as nobody in particular."""
        return self._send("POST", path, body, {})

    def _send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def upload(self, sent: "Sent") -> list[int]:
        """Send NAR and narinfo; returns both statuses."""
        return [
            self.put(f"/{sent.narinfo.url}", sent.content).status,
            self.put(sent.path, sent.narinfo.render().encode()).status,
        ]

    def wait_published(self) -> None:
        """Wait until the spool is empty."""
        self.wait_until(lambda status: status["uploads"]["paths"] == 0)

    @property
    def url_with_password(self) -> str:
        parts = urlsplit(self.url)
        return f"http://any:{TOKEN}@{parts.netloc}"


@dataclass(frozen=True, slots=True)
class Sent:
    """What a client sends of one path."""

    narinfo: NarInfo
    content: bytes  # of the compressed NAR

    @classmethod
    def of(cls, one: StoreObject, compression: str = "zstd") -> Self:
        match compression:
            case "zstd":
                content = zstandard.compress(one.nar)
            case "xz":
                content = lzma.compress(one.nar)
            case _:
                content = one.nar
        return cls(one.narinfo, b"").with_content(content, compression)

    @property
    def path(self) -> str:
        return f"/{self.narinfo.store_path.hash_part}.narinfo"

    def with_content(self, content: bytes, compression: str = "zstd") -> Self:
        """Send other bytes, under their own FileHash."""
        file_hash = NixHash(hashlib.sha256(content).digest())
        url = f"nar/{str(file_hash).removeprefix('sha256:')}.nar{SUFFIXES[compression]}"
        narinfo = replace(
            self.narinfo, url=url, compression=compression, file_hash=file_hash, file_size=len(content)
        )
        return replace(self, narinfo=narinfo, content=content)
