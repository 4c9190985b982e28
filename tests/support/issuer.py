"""An issuer of JSON Web Tokens, as GitHub is one: a real server with its configuration and keys."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.support.server_thread import ServerThread

AUDIENCE = "https://cache.example"
REQUEST_TOKEN = "of-the-job"


class Issuer:
    """Signs with an RSA and an EC key.

    Attributes:
        fetches: how often its keys were fetched.
        audiences: that jobs asked tokens for.
        is_down: whether it answers with 500.
        keys: as it hands them out.
        claims: of the tokens that jobs get.
    """

    def __init__(self) -> None:
        self.fetches = 0
        self.audiences: list[str] = []
        self.is_down = False
        self.claims: dict[str, object] = {}
        self.rsa = rsa.generate_private_key(65537, 2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.keys: list[Mapping[str, object]] = [
            {**jwt.algorithms.RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True), "kid": "rsa"},
            {**jwt.algorithms.ECAlgorithm.to_jwk(self.ec.public_key(), as_dict=True), "kid": "ec"},
        ]
        self.server = ServerThread(self._answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.ports[0]}"

    @property
    def job(self) -> dict[str, str]:
        """The environment of a job at GitHub that may have tokens."""
        return {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.url}/token?api-version=2",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": REQUEST_TOKEN,
        }

    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(
        self,
        claims: Mapping[str, object],
        *,
        key: Any = None,  # noqa: ANN401  PyJWT's own
        algorithm: str = "RS256",
        kid: str | None = "rsa",
    ) -> str:
        """Make a token that lives for five minutes, unless the claims say otherwise; None leaves one out."""
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "repo:octocat/hello", "exp": now + 300}
        whole = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        headers = {"kid": kid} if kid is not None else {}
        return jwt.encode(whole, self.rsa if key is None else key, algorithm, headers)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.is_down:
            return web.Response(status=500)
        match request.path:
            case "/.well-known/openid-configuration":
                return web.json_response({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})
            case "/keys":
                self.fetches += 1
                return web.json_response({"keys": self.keys})
            case "/token" if request.headers.get("Authorization") == f"bearer {REQUEST_TOKEN}":
                audience = request.query["audience"]
                self.audiences.append(audience)
                return web.json_response({"value": self.sign({**self.claims, "aud": audience})})
        return web.Response(status=404)


@contextmanager
def running_issuer() -> Iterator[Issuer]:
    issuer = Issuer()
    issuer.server.start()
    try:
        yield issuer
    finally:
        issuer.server.stop()


def rule(issuer: str, claims: str = 'repository_id = "42"', name: str = "ci") -> str:
    """Write a rule of NIXCACHE_OIDC_FILE."""
    return (
        f'[[rule]]\nname = "{name}"\nissuer = "{issuer}"\naudience = "{AUDIENCE}"\nclaims = {{ {claims} }}\n'
    )
