"""Failures of one HTTP request.

Source of error documents: OCI distribution specification, "Error Codes".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from nixcache_oci.oci.document import read_json

_MOST_CHARACTERS: Final = 600
_LONGEST_MESSAGE: Final = 200  # characters
_DETAILS: Final = ("message", "reason", "digest")  # of an error's detail, if that is a document


def show(text: str) -> str:
    """Make a text fit for one line of a log or terminal: control characters escaped, length bounded."""
    if len(text) <= _MOST_CHARACTERS and text.isprintable():
        return text
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text[:_MOST_CHARACTERS]
    )
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"


@dataclass(frozen=True, slots=True)
class Failure:
    """A request's failure."""

    status: int | None  # of HTTP; None without an answer
    headers: Mapping[str, str] = field(default_factory=dict)  # of the answer; names in lower case
    body: bytes = b""  # of the answer, at least its beginning
    # Whether a server that the registry redirected to answered. It mostly refuses expired signatures, and
    # the registry issues new ones.
    is_elsewhere: bool = False
    is_expected: bool = False  # whether the thing is known to exist, so that 404 only means "not yet"
    is_verified: bool = False  # whether the bytes sent match the digest that they were sent with
    is_heavy: bool = False  # whether the request is too large to be sent again until a rate limit has passed


class HttpError(Exception):
    """A request had no usable answer; each client turns this into its own error.

    Args:
        failure: decides about a retry.
        reason: what happened, without secrets and signed URLs; made fit for one line.
        code: the OCI error code, or an empty string.
        is_final: whether a retry cannot help, whatever ``failure`` says.
        is_about_token: whether a token service refused, not the server itself.
        is_connection: whether a connection could not be made, broke, or fell silent.
    """

    def __init__(
        self,
        failure: Failure,
        reason: str,
        *,
        code: str = "",
        is_final: bool = False,
        is_about_token: bool = False,
        is_connection: bool = False,
    ) -> None:
        self.reason = show(reason)
        super().__init__(self.reason)
        self.failure = failure
        self.code = code
        self.is_final = is_final
        self.is_about_token = is_about_token
        self.is_connection = is_connection

    @classmethod
    def final(cls, reason: str) -> Self:
        """Make an error that no retry can help."""
        return cls(Failure(None), reason, is_final=True)


def parse_error(body: bytes) -> tuple[str, str]:
    """Read code and message of an error document; both are empty if it is none.

    GitHub reports its secondary rate limit in a document with only a ``message``. GitLab and Quay give the
    reason in ``detail``, which then follows the message.
    """
    document = read_json(body)
    if not isinstance(document, dict):
        return "", ""
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else {}
    # A code counts only in a registry's own document: some codes mean that the cache is empty.
    code, message, detail = (
        (first.get("code"), first.get("message"), first.get("detail"))
        if isinstance(first, dict) and first
        else (None, document.get("message"), None)
    )
    if isinstance(detail, dict):
        detail = next((detail[key] for key in _DETAILS if detail.get(key)), None)
    texts = (clean_line(text) for text in (message, detail) if isinstance(text, str))
    return (
        code.upper() if isinstance(code, str) and code.isascii() and code.isidentifier() else "",
        ": ".join(dict.fromkeys(filter(None, texts))),
    )


def clean_line(text: str) -> str:
    """Make one short line of a stranger's text: what is not printable is dropped."""
    line = " ".join(text.split())
    return "".join(character for character in line if character.isprintable())[:_LONGEST_MESSAGE]
