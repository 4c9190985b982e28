"""JSON Web Tokens, from a real issuer: whom they let upload, and what the others are told."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from nixcache_oci.errors import FormatError
from nixcache_oci.proxy.uploads.interface import UploadRefusedError
from nixcache_oci.proxy.writers import issuer_keys
from nixcache_oci.proxy.writers.issuer_keys import (
    AGAIN_SECONDS,
    FRESH_SECONDS,
    MOST_KEYS,
    STALE_SECONDS,
    IssuerKeys,
    KeysUnavailableError,
)
from nixcache_oci.proxy.writers.oidc import MOST_TOKEN_BYTES, OidcWriters, parse_rules
from nixcache_oci.proxy.writers.sessions import JOB_SECONDS, MOST_SESSIONS, Sessions
from tests.support.issuer import Issuer, rule, running_issuer

RIGHT = {"repository_id": "42"}


@pytest.fixture(scope="module")
def running() -> Iterator[Issuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def issuer(running: Issuer) -> Issuer:
    """The same, which answers, and nobody asked yet."""
    running.is_down, running.fetches = False, 0
    return running


async def check(issuer: Issuer, token: str | bytes, text: str | None = None) -> str:
    """Give the rule that lets a token upload."""
    writers = OidcWriters(parse_rules(text or rule(issuer.url)))
    return (await writers.check(token.encode() if isinstance(token, str) else token)).rule


async def refusal(issuer: Issuer, token: str | bytes, text: str | None = None) -> str:
    with pytest.raises(UploadRefusedError) as caught:
        await check(issuer, token, text)
    assert caught.value.status == 403
    return str(caught.value).removeprefix("the JSON Web Token does not let upload: ")


async def test_right_tokens_let_upload(issuer: Issuer) -> None:
    """By RSA and by ECDSA; other claims, and other audiences beside ours, do not matter."""
    assert await check(issuer, issuer.sign(RIGHT)) == "ci"
    assert await check(issuer, issuer.sign(RIGHT, key=issuer.ec, algorithm="ES256", kid="ec")) == "ci"
    assert await check(issuer, issuer.sign({**RIGHT, "aud": ["x", "https://cache.example"]})) == "ci"
    # Clocks differ.
    assert await check(issuer, issuer.sign({**RIGHT, "exp": int(time.time()) - 10})) == "ci"


def _unsigned(issuer: Issuer) -> str:
    return issuer.sign(RIGHT, key="", algorithm="none")


def _signed_with_public_key(issuer: Issuer) -> str:
    """By hand: PyJWT does not make it."""
    parts = [{"alg": "HS256", "typ": "JWT", "kid": "rsa"}, {"iss": issuer.url, "exp": 2**40, **RIGHT}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    content = b".".join(encoded)
    signature = hmac.digest(issuer.public_pem(), content, hashlib.sha256)
    return (content + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def _changed(issuer: Issuer) -> str:
    head, _, signature = issuer.sign({"repository_id": "41"}).split(".")
    return ".".join((head, issuer.sign(RIGHT).split(".")[1], signature))


STRANGER = rsa.generate_private_key(65537, 2048)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda one: one.sign({**RIGHT, "exp": int(time.time()) - 60}), "it has expired"),
        (lambda one: one.sign({**RIGHT, "exp": None}), "it has no claim exp"),
        (lambda one: one.sign({**RIGHT, "exp": "soon"}), "it is malformed"),
        (lambda one: one.sign({**RIGHT, "nbf": int(time.time()) + 60}), "it is not valid yet"),
        (lambda one: one.sign({**RIGHT, "aud": "https://other.example"}), "it was made for another audience"),
        (lambda one: one.sign({**RIGHT, "aud": None}), "it has no claim aud"),
        (
            lambda one: one.sign({**RIGHT, "iss": "https://evil.example"}),
            "its issuer is not one that counts here",
        ),
        (lambda one: one.sign({**RIGHT, "iss": one.url + "/"}), "its issuer is not one that counts here"),
        (lambda one: one.sign({"repository_id": "43"}), "its claim repository_id does not match"),
        (lambda one: one.sign({"repository_id": "420"}), "its claim repository_id does not match"),
        (lambda one: one.sign({}), "its claim repository_id does not match"),
        (lambda one: one.sign({"repository_id": {"42": "42"}}), "its claim repository_id does not match"),
        (lambda one: one.sign(RIGHT, kid="other"), "it is signed by an unknown key"),
        (lambda one: one.sign(RIGHT, kid=None), "it is signed by an unknown key"),
        (lambda one: one.sign(RIGHT, kid="ec"), "its signature is not right"),
        (lambda one: one.sign(RIGHT, key=STRANGER), "its signature is not right"),
        (_changed, "its signature is not right"),
        (_unsigned, "it is not signed by RS256 or ES256"),
        (_signed_with_public_key, "it is not signed by RS256 or ES256"),
        (lambda one: one.sign(RIGHT, algorithm="RS512"), "it is not signed by RS256 or ES256"),
        (lambda _: "eyJ.eyJ.x", "it is malformed"),
        (lambda _: "..", "it is malformed"),
        (lambda one: one.sign({"x": "x" * MOST_TOKEN_BYTES}), "it is too long"),
    ],
)
async def test_wrong_tokens_are_told_what_they_miss(
    issuer: Issuer, make: Callable[[Issuer], str], reason: str
) -> None:
    """The rule, and never what it expects."""
    assert await refusal(issuer, make(issuer)) == reason


def _encode(*parts: bytes) -> bytes:
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


HEAD = b'{"alg":"RS256","kid":"rsa"}'
DEEP = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize(
    "token",
    [
        *(b"", b"\xff\xfe.\xff.\xff", b"a.b.c", b"." * 1000, b"eyJ" + bytes(100)),
        _encode(b"[]", b"{}", b"x"),
        _encode(b'{"alg":["RS256"]}', b"{}", b"x"),
        _encode(HEAD, b"[]", b"x"),
        _encode(HEAD, DEEP, b"x"),
        _encode(DEEP, b"{}", b"x"),
        _encode(HEAD, b'{"iss":["a"]}', b"x"),
        _encode(HEAD, b'{"exp":' + b"9" * 5000 + b"}", b"x"),
        _encode(b'{"alg":"RS256","kid":"rsa","crit":["x"]}', b"{}", b"x"),
        _encode(b'{"alg":"RS256","kid":"rsa","b64":false}', b"{}", b"x"),
    ],
)
async def test_what_is_no_token_is_refused(issuer: Issuer, token: bytes) -> None:
    """As a refusal, whatever the library makes of it; nobody is asked for keys."""
    await refusal(issuer, token)
    assert issuer.fetches == 0


@pytest.mark.parametrize("exp", [float("inf"), 10**400, -(10**400), [1], {}, True, None])
async def test_a_time_that_is_none_is_refused(issuer: Issuer, exp: object) -> None:
    """Signed as it is."""
    await refusal(issuer, issuer.sign({**RIGHT, "exp": exp}))


async def test_each_rule_is_tried(issuer: Issuer) -> None:
    """One that matches suffices; what each misses is told by name."""
    text = rule(issuer.url, 'ref = ["refs/heads/main", "refs/tags/v*"]', "main") + rule(
        issuer.url, 'admin = "true"\nlevel = "3"\ngroups = "writers"'.replace("\n", ", "), "people"
    )
    assert await check(issuer, issuer.sign({"ref": "refs/tags/v1.0"}), text) == "main"
    person = {"admin": True, "level": 3, "groups": ["readers", "writers"]}
    assert await check(issuer, issuer.sign(person), text) == "people"
    told = await refusal(issuer, issuer.sign({**person, "admin": False}), text)
    assert told == "main: its claim ref does not match; people: its claim admin does not match"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "x", "not TOML"),
        (lambda _: "", "1 to 100 tables"),
        (lambda text: text * 101, "1 to 100 tables"),
        (lambda text: text + 'more = "x"', "rule 1: expected audience, claims, issuer, name"),
        (
            lambda text: text.replace("audience", "audiences"),
            "rule 1: expected audience, claims, issuer, name",
        ),
        (lambda text: 'other = "x"\n' + text, "and nothing else"),
        (lambda text: text + text, "different name"),
        (lambda text: text.replace('"42"', "42"), "claims: repository_id: expected a string"),
        (lambda text: text.replace('"42"', "[]"), "claims: repository_id: expected a string"),
        (lambda text: text.replace('"42"', '"*"'), "whoever gets a token"),
        (lambda text: text.replace('"42"', '["42", "**"]'), "whoever gets a token"),
        (lambda text: text.replace('repository_id = "42"', ""), "whoever gets a token"),
        (lambda text: text.replace("https://cache.example", ""), "audience: expected a string"),
        (
            lambda text: text.replace("http://127.0.0.1:1", "http://issuer.example"),
            "issuer: expected an https URL",
        ),
        (lambda text: text.replace("http://127.0.0.1:1", "issuer.example"), "issuer: expected an https URL"),
        (lambda text: text.replace("http://127.0.0.1:1", "https://a:b@c"), "issuer: expected an https URL"),
    ],
)
def test_a_rule_that_is_none_is_an_error(change: Callable[[str], str], message: str) -> None:
    """Above all one that lets everybody."""
    with pytest.raises(FormatError, match=message.replace("*", r"\*")):
        parse_rules(change(rule("http://127.0.0.1:1")))


class Clock:
    """Seconds, as told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_flood_of_unknown_keys_asks_once(issuer: Issuer) -> None:
    """The issuer is asked again after 30 s, and a known key is never waited for."""
    clock = Clock()
    keys = IssuerKeys(issuer.url, clock)
    assert await keys.find("rsa") is not None
    await asyncio.gather(*(keys.find(f"unknown-{number}") for number in range(1000)))
    assert issuer.fetches == 1
    clock.now += AGAIN_SECONDS
    await asyncio.gather(*(keys.find(f"unknown-{number}") for number in range(1000)))
    assert issuer.fetches == 2


async def test_a_new_key_is_found_and_an_old_one_is_forgotten(issuer: Issuer) -> None:
    """Issuers change keys; one that was withdrawn counts for an hour at most."""
    clock = Clock()
    keys = IssuerKeys(issuer.url, clock)
    assert await keys.find("rsa") is not None
    [of_rsa, of_ec] = issuer.keys
    try:
        issuer.keys = [{**of_rsa, "kid": "new"}, of_ec]
        clock.now += AGAIN_SECONDS
        assert await keys.find("new") is not None
        assert await keys.find("rsa") is None
        issuer.keys = [of_ec]
        assert await keys.find("new") is not None
        clock.now += FRESH_SECONDS
        assert await keys.find("new") is None
    finally:
        issuer.keys = [of_rsa, of_ec]


async def test_keys_outlive_an_outage_of_their_issuer(issuer: Issuer) -> None:
    """For a day; without any, nobody is let in, and the next try comes."""
    clock = Clock()
    keys = IssuerKeys(issuer.url, clock)
    assert await keys.find("rsa") is not None
    issuer.is_down = True
    clock.now += STALE_SECONDS - 1
    assert await keys.find("rsa") is not None
    clock.now += AGAIN_SECONDS
    with pytest.raises(KeysUnavailableError):
        await keys.find("rsa")
    assert "cannot be checked now" in await refusal(issuer, issuer.sign(RIGHT))
    issuer.is_down = False
    clock.now += AGAIN_SECONDS
    assert await keys.find("rsa") is not None


@pytest.mark.parametrize(
    "odd",
    [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"},
        {"kty": "RSA", "kid": "half"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "okp"},
        {"kid": 3},
    ],
)
async def test_keys_that_cannot_be_used_are_left_out(issuer: Issuer, odd: dict[str, Any]) -> None:
    """The others count."""
    usable = issuer.keys
    try:
        issuer.keys = [odd, "text", {**usable[0], "use": "enc", "kid": "enc"}, *usable]  # type: ignore[list-item]
        assert set(await issuer_keys.fetch_keys(issuer.url)) == {"rsa", "ec"}
        issuer.keys = [odd]
        with pytest.raises(FormatError):
            await issuer_keys.fetch_keys(issuer.url)
    finally:
        issuer.keys = usable


async def test_keys_of_an_issuer_are_bounded(issuer: Issuer) -> None:
    """The first of too many count, and a document without end is none."""
    usable = issuer.keys
    try:
        issuer.keys = [{**usable[1], "kid": str(number)} for number in range(MOST_KEYS + 10)]
        assert len(await issuer_keys.fetch_keys(issuer.url)) == MOST_KEYS
        issuer.keys = [*usable, {"kid": "x" * issuer_keys.MOST_BYTES}]
        with pytest.raises(FormatError):
            await issuer_keys.fetch_keys(issuer.url)
    finally:
        issuer.keys = usable


def test_sessions_end() -> None:
    """With the job, whatever the token says; beyond the limit the oldest ends."""
    clock = Clock()
    sessions = Sessions(clock)
    short, one = sessions.begin("oidc ci", clock.now + 300)
    _, other = sessions.begin("oidc ci", clock.now + 10**9)
    assert (one.expires_at - clock.now, other.expires_at - clock.now) == (300 + JOB_SECONDS, 2 * JOB_SECONDS)
    assert sessions.find(short.encode()) == one
    assert sessions.find(f"{short}x".encode()) is None
    clock.now += 300 + JOB_SECONDS
    assert sessions.find(short.encode()) is None
    first, _ = sessions.begin("oidc ci", clock.now + 300)
    *_, last = [sessions.begin("oidc ci", clock.now + 300)[0] for _ in range(MOST_SESSIONS)]
    assert sessions.find(first.encode()) is None
    assert sessions.find(last.encode()) is not None
