"""How a failure is told: one line with operation, repository, what was answered, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from nixcache_oci.clients.credentials import TOKEN_FILE_VARIABLE, is_github, is_loopback
from nixcache_oci.clients.registry.retry import GiveUp, is_temporary
from nixcache_oci.clients.registry.trouble import TroubleError
from nixcache_oci.errors import NotFoundError, RegistryError

_DENIALS = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN})
_ABSENT = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "TAG_UNKNOWN", "NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class Explainer:
    """Turns trouble into the errors that callers see.

    Attributes:
        host: of the registry, ``host[:port]``.
        name: of the repository, for people.
        push: whether pushing was wanted.
        source: tells where the credentials in use come from; None while anonymous.
    """

    host: str
    name: str
    push: bool
    source: Callable[[], str | None]

    def explain(
        self, operation: str, trouble: TroubleError, end: GiveUp, *, may_be_absent: bool
    ) -> RegistryError:
        """Make the error for the end of an operation.

        Args:
            operation: such as ``get manifest cache-index``.
            trouble: the last one.
            end: why there is no other try.
            may_be_absent: whether the registry may say that it has no such thing. It must say so itself, by
                an error document: the 404 of something on the way does not mean that the cache is empty.
        """
        failure = trouble.failure
        status = failure.status
        is_absent = (
            may_be_absent
            and status == HTTPStatus.NOT_FOUND
            and trouble.code in _ABSENT
            and not failure.is_elsewhere
            and not trouble.is_about_token
        )
        hints = [f"{operation}: {self.name}: {trouble.reason}"]
        if status in _DENIALS and not is_temporary(failure) and not failure.is_elsewhere:
            hints.append(self._remedy())
        elif status == HTTPStatus.NOT_FOUND and may_be_absent and not is_absent:
            hints.append("this is not how a registry says that something is absent: is something in between?")
        if end.retry_after is not None:
            hints.append(f"it asks to wait {end.retry_after:.0f} s")
        error = NotFoundError if is_absent else RegistryError
        return error(
            "; ".join(hints),
            status=status,
            code=trouble.code,
            is_temporary=end.is_temporary,
            retry_after=end.retry_after,
        )

    def _remedy(self) -> str:
        permission = "write" if self.push else "read"
        source = self.source()
        if source is None:
            variables = "GITHUB_TOKEN" if is_github(self.host) or is_loopback(self.host) else ""
            ways = " or ".join(filter(None, (TOKEN_FILE_VARIABLE, variables)))
            need = "pushing needs credentials" if self.push else "a private repository needs credentials"
            return f"asked anonymously, and {need}: set {ways}, or run docker login {self.host}"
        if is_github(self.host):
            return (
                f"asked with {source}, which needs the permission packages: {permission}, and access to this "
                "package (package settings, Manage Actions access)"
            )
        return f"asked with {source}, which needs {permission} access to this repository"
