"""Who may upload: whoever knows one of the tokens of a file."""

import base64
import binascii
import hmac
import re
from http import HTTPStatus
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

from nixcache_oci.clients.rooted_path import read_small
from nixcache_oci.errors import UsageError
from nixcache_oci.proxy.uploads.interface import UploadRefusedError

MIN_TOKEN_CHARACTERS: Final = 16

_MOST_FILE_BYTES: Final = 64 * 1024
_LINE: Final = re.compile(
    rf"(?P<name>[A-Za-z0-9_.@-]{{1,80}}):(?P<token>[!-~]{{{MIN_TOKEN_CHARACTERS},4000}})"
)
_SETTING: Final = "NIXCACHE_UPLOAD_TOKENS_FILE"


class TokenWriters:
    """Lets those write who send a token, by Bearer, or by Basic as the password of any user.

    Args:
        tokens: by the name of their writer.
    """

    def __init__(self, tokens: dict[str, str]) -> None:
        self._tokens = {name: token.encode() for name, token in tokens.items()}

    async def check(self, request: web.Request) -> str:
        """Return the writer's name; UploadRefusedError if no rule lets the request write."""
        if not self._tokens:
            raise UploadRefusedError(f"nobody may upload here: {_SETTING} is not set", HTTPStatus.FORBIDDEN)
        given = request.headers.getall(hdrs.AUTHORIZATION, [])
        if not given:
            raise UploadRefusedError("uploads need a token, as a netrc file has it", HTTPStatus.UNAUTHORIZED)
        token = _read_token(given[0]) if len(given) == 1 else None
        if token is not None:
            # All are compared, so that the time tells nothing of which one is nearly right.
            found = [name for name, known in self._tokens.items() if hmac.compare_digest(known, token)]
            if found:
                return found[0]
        raise UploadRefusedError("the token is not one that may upload", HTTPStatus.FORBIDDEN)


def read_tokens(path: Path | None) -> dict[str, str]:
    """Read ``name:token`` lines; blank ones and those that begin with ``#`` are skipped.

    Raises UsageError, which repeats no token.
    """
    if path is None:
        return {}
    try:
        content = read_small(path, _MOST_FILE_BYTES)
    except OSError as error:
        raise UsageError(f"{_SETTING}: {path}: {error.strerror}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise UsageError(f"{_SETTING}: {path}: longer than {_MOST_FILE_BYTES} bytes")
    tokens: dict[str, str] = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["name"] in tokens:
            raise UsageError(
                f"{_SETTING}: {path}: line {number}: expected name:token, each name once, and a token of at "
                f"least {MIN_TOKEN_CHARACTERS} letters, digits and signs"
            )
        tokens[match["name"]] = match["token"]
    if not tokens:
        raise UsageError(f"{_SETTING}: {path}: has no line name:token")
    return tokens


def _read_token(header: str) -> bytes | None:
    scheme, _, value = header.strip().partition(" ")
    match scheme.lower():
        case "bearer":
            return value.strip().encode()
        case "basic":
            try:
                return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except (ValueError, binascii.Error):
                return None
    return None
