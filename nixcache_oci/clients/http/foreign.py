"""What a stranger's words do to us: libraries raise whatever they like, and texts may hold anything."""

from typing import Final

import aiohttp

# What an HTTP library, the URL parser, the resolver, TLS and codecs raise over an answer that makes no sense.
FOREIGN_ERRORS: Final = (
    aiohttp.ClientError,
    aiohttp.http_exceptions.HttpProcessingError,
    OSError,  # with TLS and time-outs
    EOFError,
    ValueError,  # with UnicodeError: host names, realms and headers that no codec takes
    LookupError,
    ArithmeticError,
    AssertionError,  # aiohttp's, about URLs that it did not foresee
    RecursionError,
    TypeError,
)

_MOST_CHARACTERS: Final = 600


def show(text: str) -> str:
    """Make a text fit for one line of a log or terminal: control characters shown, and not too long."""
    if len(text) <= _MOST_CHARACTERS and text.isprintable():
        return text
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:_MOST_CHARACTERS]
    )
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"
