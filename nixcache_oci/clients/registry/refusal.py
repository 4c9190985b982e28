"""How a failure is told: one line with operation, repository, what was answered, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

from nixcache_oci.clients.registry.answer import parse_error
from nixcache_oci.clients.registry.breakage import CLOSED_EARLY, NOT_HTTP
from nixcache_oci.clients.registry.remedy import Asker, Refusal, find_remedy
from nixcache_oci.clients.registry.retry import GiveUp, is_rate_limit
from nixcache_oci.clients.registry.trouble import TroubleError
from nixcache_oci.errors import NotFoundError, RegistryError

# Of Go's servers, nginx, Apache and others.
_TLS_WORDS = (b"https", b"ssl-enabled", b"tls")
_ABSENT = frozenset({"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN", "TAG_UNKNOWN", "NOT_FOUND"})


@dataclass(frozen=True, slots=True)
class Explainer:
    """Turns trouble into the errors that callers see.

    Attributes:
        host: of the registry, ``host[:port]``.
        name: of the repository, for people.
        push: whether pushing was wanted.
        plain_http: whether it is spoken to without TLS.
        source: tells where the credentials in use come from; None while anonymous.
    """

    host: str
    name: str
    push: bool
    plain_http: bool
    source: Callable[[], str | None]

    def explain(
        self,
        operation: str,
        trouble: TroubleError,
        end: GiveUp,
        *,
        may_be_absent: bool,
        size: int | None = None,
        is_manifest: bool = False,
    ) -> RegistryError:
        """Make the error for the end of an operation.

        Args:
            operation: such as ``get manifest cache-index``.
            trouble: the last one.
            end: why there is no other try.
            may_be_absent: whether the registry may say that it has no such thing. It must say so itself, by
                an error document: the 404 of something on the way does not mean that the cache is empty.
            size: bytes that the request carried, or None.
            is_manifest: whether these are a manifest.
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
        if end.retry_after is not None:
            hints.append(f"it asks to wait {end.retry_after:.0f} s")
        if status == HTTPStatus.NOT_FOUND and may_be_absent and not is_absent:
            hints.append("this is not how a registry says that something is absent: is something in between?")
        elif not is_absent and (remedy := self._find_remedy(trouble, size, is_manifest=is_manifest)):
            hints.append(remedy)
        error = NotFoundError if is_absent else RegistryError
        return error(
            "; ".join(hints),
            status=status,
            code=trouble.code,
            is_temporary=end.is_temporary,
            retry_after=end.retry_after,
        )

    def _find_remedy(self, trouble: TroubleError, size: int | None, *, is_manifest: bool) -> str:
        failure = trouble.failure
        if self.plain_http and not failure.is_elsewhere and not trouble.is_about_token:
            hint = find_tls_hint(self.host, failure.status, failure.body, trouble.reason)
            if hint:
                return hint
        asker = Asker(self.host, self.name.removeprefix(f"{self.host}/"), self.push, self.source())
        refusal = Refusal(
            failure.status,
            trouble.code,
            parse_error(failure.body)[1],
            size,
            is_about_token=trouble.is_about_token,
            is_elsewhere=failure.is_elsewhere,
            is_limit=is_rate_limit(failure),
            is_manifest=is_manifest,
        )
        return find_remedy(asker, refusal)


def find_tls_hint(host: str, status: int | None, body: bytes, reason: str = "") -> str:
    """Say what to do where a registry that is spoken to without TLS wants it; empty where it does not say so.

    Servers differ: some answer 400 and say it in their own words, some answer in TLS, some hang up.

    Args:
        host: of the registry, ``host[:port]``.
        status: of its answer; None where none came.
        body: of its answer.
        reason: why none came.
    """
    if status == HTTPStatus.BAD_REQUEST and any(word in body.lower() for word in _TLS_WORDS):
        return f"it speaks TLS: write https://{host}"
    if status is None and reason in {CLOSED_EARLY, NOT_HTTP}:
        return f"it was asked without TLS: if it speaks TLS, write https://{host}"
    return ""
