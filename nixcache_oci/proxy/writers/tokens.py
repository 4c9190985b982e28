"""Tokens that may upload: ``name:token`` lines of a file."""

import hmac
import re
from collections.abc import Mapping
from typing import Final

from nixcache_oci.errors import FormatError

MIN_TOKEN_CHARACTERS: Final = 16
MAX_TOKEN_CHARACTERS: Final = 3900
"""As a netrc file may hold for every Nix. Source: facts about Nix clients, "Uploads"."""

_LINE: Final = re.compile(
    rf"(?P<name>[A-Za-z0-9_.@-]{{1,80}}):(?P<token>[!-~]{{{MIN_TOKEN_CHARACTERS},{MAX_TOKEN_CHARACTERS}}})"
)


def parse_tokens(text: str) -> dict[str, bytes]:
    """Read the lines by name; blank ones and those that begin with ``#`` are skipped.

    Raises FormatError, which repeats no token.
    """
    tokens: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["name"] in tokens:
            raise FormatError(
                f"line {number}: expected name:token, each name once, and a token of {MIN_TOKEN_CHARACTERS} "
                f"to {MAX_TOKEN_CHARACTERS} letters, digits and signs"
            )
        tokens[match["name"]] = match["token"].encode()
    if not tokens:
        raise FormatError("has no line name:token")
    return tokens


def find_name(tokens: Mapping[str, bytes], given: bytes) -> str | None:
    """Find whose token this is."""
    # All are compared, so that the time tells nothing of which one is nearly right.
    found = [name for name, token in tokens.items() if hmac.compare_digest(token, given)]
    return found[0] if found else None
