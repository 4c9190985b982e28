"""Which repositories may be opened on demand, and how: anonymously, and maybe only at a public address."""

from dataclasses import dataclass
from typing import Protocol

from yarl import URL

from nixcache_oci.clients.http.public_address import is_public, spells_private
from nixcache_oci.clients.repository import Repository
from nixcache_oci.errors import FormatError
from nixcache_oci.oci.reference import RegistryReference
from nixcache_oci.proxy.prefix import RepositoryPattern, parse_prefix


class OpenAnonymously(Protocol):
    """Opens a repository without credentials."""

    def __call__(self, reference: RegistryReference, *, must_be_public: bool) -> Repository:
        """Open it, maybe only at a public address."""


@dataclass(frozen=True, slots=True)
class OnDemandSettings:
    """What may be opened on demand, and how."""

    patterns: tuple[RepositoryPattern, ...]
    open_anonymously: OpenAnonymously

    def allows(self, prefix: str) -> RegistryReference | None:
        """Return the repository that a prefix names, if it may be opened."""
        try:
            reference = parse_prefix(prefix)
        except FormatError:
            return None
        if not any(pattern.allows(reference) for pattern in self.patterns):
            return None
        is_refused = self.must_be_public(reference) and spells_private(URL(reference.base_url), is_public)
        return None if is_refused else reference

    def must_be_public(self, reference: RegistryReference) -> bool:
        """Tell whether no pattern that allows a repository names its host."""
        return not any(pattern.names_host and pattern.allows(reference) for pattern in self.patterns)
