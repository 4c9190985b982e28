"""Every error that this package raises on purpose.

Error:
├── UsageError           a setting or argument that cannot be used: exit status 2
├── FormatError          input breaks a published format
│   └── LimitError       ... together with all that was read before it: the rest is left out
├── DigestError          bytes are not what their digest says
├── RegistryError        the repository could not do it: status, OCI code, is_temporary
│   └── NotFoundError    ... because it has no such blob, manifest or tag
├── StoreError           the local Nix store or evaluator refused
└── UpstreamError        no upstream could answer
    ├── UpstreamConnectionError  ... because no connection could be made, or it died or fell silent
    └── UpstreamNotFoundError    ... because it has no such NAR, or part of it
"""


class Error(Exception):
    """Base of all: its text is one line that a user can act on."""


class UsageError(Error):
    """A setting or argument that cannot be used; names it and the remedy."""


class FormatError(Error):
    """Input breaks a published format; names the format and what is wrong."""


class LimitError(FormatError):
    """All of a kind together are more than is read; names the limit. What was read before stays good."""


class DigestError(Error):
    """Bytes are not what their digest says they are."""


class RegistryError(Error):
    """The repository could not do what was asked.

    Args:
        message: one line: operation, repository, reason.
        status: HTTP status, or None where no answer came (or there is no HTTP).
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
    """The repository answered, and has no such blob, manifest or tag."""


class StoreError(Error):
    """The local Nix store or evaluator refused; what it said was shown when it said it."""


class UpstreamError(Error):
    """No upstream could answer: neither a hit nor a miss."""


class UpstreamConnectionError(UpstreamError):
    """No connection to an upstream could be made, or it broke, or nothing came over it in time."""


class UpstreamNotFoundError(UpstreamError):
    """There is no such upstream, or it answered, and has no such NAR or no such part of it."""
