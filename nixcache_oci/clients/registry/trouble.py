"""What can go wrong with one try, before it is known whether there will be another. Stays in this package."""

from nixcache_oci.clients.http.foreign import show
from nixcache_oci.clients.registry.retry import Failure


class TroubleError(Exception):
    """One try failed; becomes a RegistryError when there is no other.

    Args:
        failure: what the decision about another try is made from.
        reason: what happened, without secrets and signed URLs; is made fit for one line.
        code: the OCI error code, or an empty string.
        is_final: whether another try cannot help, whatever ``failure`` says.
        is_about_token: whether the token service refused, not the registry itself.
    """

    def __init__(
        self,
        failure: Failure,
        reason: str,
        *,
        code: str = "",
        is_final: bool = False,
        is_about_token: bool = False,
    ) -> None:
        self.reason = show(reason)
        super().__init__(self.reason)
        self.failure = failure
        self.code = code
        self.is_final = is_final
        self.is_about_token = is_about_token
