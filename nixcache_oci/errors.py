"""Every error that this package raises on purpose.

Error:
├── UsageError           a setting or argument that cannot be used: exit status 2
├── FormatError          input breaks a published format
│   └── LimitError       ... or, with what was read before, a limit on the total: the rest is left out
├── DigestError          bytes do not match their digest
├── RegistryError        the repository failed: status, OCI code, is_temporary
│   ├── NotFoundError    ... because it has no such blob, manifest or tag
│   └── ReferencedError  ... to delete a manifest, because an image index still lists it
├── StoreError           the local Nix store or evaluator refused
└── UpstreamError        no upstream could answer
    ├── UpstreamBusyError        ... because it wants fewer requests, or fails: retry_after
    ├── UpstreamConnectionError  ... because no connection could be made, or it died or fell silent
    └── UpstreamNotFoundError    ... because it has no such NAR, or no such part of it
"""


class Error(Exception):
    """Base of all: its text is one line, which a user can act on."""


class UsageError(Error):
    """A setting or argument cannot be used; names it and what to do."""


class FormatError(Error):
    """Input breaks a published format; names the format and what is wrong."""


class LimitError(FormatError):
    """The total of a kind exceeds a limit, which is named; what was read before stays valid."""


class DigestError(Error):
    """Bytes do not match their digest."""


class RegistryError(Error):
    """The repository failed or refused.

    Args:
        message: one line: operation, repository, reason.
        status: HTTP status; None without an answer, or without HTTP.
        code: the OCI error code, such as ``DENIED``, or an empty string.
        is_temporary: whether the same request may succeed later.
        retry_after: seconds that the registry asked to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str = "",
        is_temporary: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.is_temporary = is_temporary
        self.retry_after = retry_after


class NotFoundError(RegistryError):
    """The repository answered that it has no such blob, manifest or tag."""


class ReferencedError(RegistryError):
    """The repository keeps a manifest for as long as an image index lists it."""


class StoreError(Error):
    """The local Nix store or evaluator failed; its own output was shown as it came."""


class UpstreamError(Error):
    """No upstream could answer: it is neither a hit nor a miss."""


class UpstreamBusyError(UpstreamError):
    """An upstream answered 429 or 5xx; ``retry_after`` is how many seconds it asked to wait, or None."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UpstreamConnectionError(UpstreamError):
    """A connection to an upstream could not be made, broke, or fell silent."""


class UpstreamNotFoundError(UpstreamError):
    """There is no such upstream, or it answered that it has no such NAR, or no such part of it."""
