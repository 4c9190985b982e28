"""Debian's docker-registry (distribution 2.8) in a temporary folder, with a token service of our own.

with DockerRegistry(auth=True, delete=True) as registry: ... registry.host ...
"""

import base64
import functools
import hashlib
import json
import re
import secrets
import subprocess
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.support.programs import require_program
from tests.support.server_thread import ServerThread

_ISSUER = "test-issuer"
_SERVICE = "test-registry"
_LISTENING = re.compile(r"listening on 127\.0\.0\.1:(\d+)")
_SCOPE = re.compile(r"repository:(?P<name>[^:\s]+):(?P<actions>[a-z*,]+)")
_START_SECONDS = 15
_STOP_SECONDS = 15


class TokenIssuer:
    """Signs registry tokens for one user; the registry trusts its certificate.

    Attributes:
        authorizations: what was shown to it; None where nothing was.
    """

    def __init__(self, user: str, password: str, token_seconds: int) -> None:
        self._user = user
        self._password = password
        self._token_seconds = token_seconds
        self._key = _private_key()
        self.authorizations: set[str | None] = set()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer ``GET /token?scope=…`` for the right Basic credentials, else 401."""
        self.authorizations.add(request.headers.get("Authorization"))
        credentials = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {credentials}":
            return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401)
        scopes = " ".join(request.query.getall("scope", [])).split()
        token = self._sign([match for scope in scopes if (match := _SCOPE.fullmatch(scope))])
        return web.json_response({"token": token, "expires_in": self._token_seconds})

    def _sign(self, scopes: list[re.Match[str]]) -> str:
        now = int(time.time())
        claims = {
            "iss": _ISSUER,
            "sub": self._user,
            "aud": _SERVICE,
            "iat": now,
            "nbf": now,
            "exp": now + self._token_seconds,
            "jti": secrets.token_hex(8),
            "access": [
                {"type": "repository", "name": scope["name"], "actions": scope["actions"].split(",")}
                for scope in scopes
            ],
        }
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": self._key_id()})

    def certificate(self) -> bytes:
        """Certify the key by itself, in PEM."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _ISSUER)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _key_id(self) -> str:
        """Name the key as distribution wants it: base32 of a hash, in groups of four."""
        public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        text = base64.b32encode(hashlib.sha256(public).digest()[:30]).decode()
        return ":".join(text[index : index + 4] for index in range(0, len(text), 4))


@functools.cache
def _private_key() -> rsa.RSAPrivateKey:
    """Make the key once in a test run: it takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(kw_only=True, eq=False)
class DockerRegistry:
    """Runs from ``with DockerRegistry() as registry`` on, and leaves nothing behind.

    Attributes:
        auth: whether a token is needed; without, everything is allowed to everybody.
        delete: whether OCI DELETE is enabled.
        remembers_blobs: whether it keeps descriptors in memory, as Debian configures it: a HEAD of what was
            collected is then still answered as if it were there.
        token_seconds: lifetime of tokens; the registry lets 60 s more pass.
    """

    auth: bool = True
    delete: bool = True
    remembers_blobs: bool = False
    token_seconds: int = 300
    user: str = "octocat"
    password: str = "registry-password"

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="docker-registry-")
        self._path = Path(self._folder.name)
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.tokens = TokenIssuer(self.user, self.password, self.token_seconds)
        self._token_server = ServerThread(self.tokens.serve)

    def __enter__(self) -> Self:
        try:
            if self.auth:
                self._token_server.start()
            self.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self.stop()
        self._token_server.stop()
        self._folder.cleanup()

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``, the same after a restart."""
        return f"127.0.0.1:{self._port}"

    @property
    def data(self) -> Path:
        """The folder with all that it stores, for tests that damage it."""
        return self._path / "data"

    @property
    def log(self) -> str:
        """What the registry said since its first start, for messages about failures."""
        path = self._path / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> None:
        """Start it and wait until it listens."""
        if self._process is not None:
            return
        self._write_config()
        seen = len(self.log)
        with (self._path / "log").open("ab") as log:
            command = [require_program("docker-registry"), "serve", str(self._path / "config.yml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while (match := _LISTENING.search(self.log, seen)) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"docker-registry does not listen: {self.log[-2000:]}")
            time.sleep(0.01)
        self._port = int(match[1])

    def stop(self) -> None:
        """End it, by its process id; what it stored stays for the next start."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def garbage_collect(self, *, untagged: bool = False) -> str:
        """Remove blobs that no manifest names, and untagged manifests if asked; returns its words."""
        options = ["--delete-untagged"] if untagged else []
        command = [
            require_program("docker-registry"),
            "garbage-collect",
            *options,
            str(self._path / "config.yml"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if result.returncode:
            raise RuntimeError(
                f"docker-registry garbage-collect: {result.stdout[-1000:]}{result.stderr[-1000:]}"
            )
        return result.stdout

    def lose_blob(self, digest: str) -> None:
        """Take a blob's bytes away behind the registry's back; ``digest`` is hexadecimal."""
        for path in self.data.rglob(f"sha256/{digest[:2]}/{digest}/data"):
            path.unlink()

    def disk_usage(self) -> int:
        """The bytes of all stored files."""
        files = self.data.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def _write_config(self) -> None:
        """JSON is YAML too. Without a cache of descriptors, what was collected is gone at once."""
        self.data.mkdir(exist_ok=True)
        storage: dict[str, object] = {
            "filesystem": {"rootdirectory": str(self.data)},
            "delete": {"enabled": self.delete},
            "maintenance": {"uploadpurging": {"enabled": False}},
        }
        if self.remembers_blobs:
            storage["cache"] = {"blobdescriptor": "inmemory"}
        config: dict[str, object] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": storage,
            "http": {"addr": self.host, "relativeurls": True, "secret": secrets.token_hex(16)},
        }
        if self.auth:
            (self._path / "issuer.pem").write_bytes(self.tokens.certificate())
            config["auth"] = {
                "token": {
                    "realm": f"http://127.0.0.1:{self._token_server.ports[0]}/token",
                    "service": _SERVICE,
                    "issuer": _ISSUER,
                    "rootcertbundle": str(self._path / "issuer.pem"),
                }
            }
        (self._path / "config.yml").write_text(json.dumps(config))
