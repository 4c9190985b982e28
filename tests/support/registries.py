"""Both registries that the journey is tried with, behind the same few names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from nixcache_oci.clients.credentials import Credentials
from nixcache_oci.clients.registry.client import Registry
from nixcache_oci.oci.reference import RegistryReference
from tests.support.docker_registry import DockerRegistry
from tests.support.ghcr import GhcrDouble

REPO = "octocat/hello"


Server_co = TypeVar("Server_co", bound=GhcrDouble | DockerRegistry, covariant=True)


@dataclass(frozen=True, slots=True)
class RunningRegistry(Generic[Server_co]):
    """A registry that runs, with a user who may pull and push.

    Attributes:
        server: what runs it.
        user: of the credentials.
        password: of the credentials, or a token.
    """

    server: Server_co
    user: str
    password: str

    @property
    def settings(self) -> dict[str, str]:
        """What a proxy is told, but for credentials."""
        return {"NIXCACHE_REGISTRY": self.server.host, "NIXCACHE_REPO": REPO}

    def client(self) -> Registry:
        """Make a client that may push; the caller closes it."""
        credentials = Credentials(self.user, self.password, "the test")
        reference = RegistryReference.of(self.server.host, REPO, "nix-cache")
        return Registry(reference, credentials, push=True, patience=20)


Ghcr: TypeAlias = RunningRegistry[GhcrDouble]
AnyRegistry: TypeAlias = RunningRegistry[GhcrDouble] | RunningRegistry[DockerRegistry]


@contextmanager
def docker_registry() -> Iterator[RunningRegistry[DockerRegistry]]:
    """Debian's docker-registry, with token authentication."""
    with DockerRegistry(auth=True) as registry:
        yield RunningRegistry(registry, registry.user, registry.password)


@contextmanager
def ghcr_double() -> Iterator[Ghcr]:
    """The double of GHCR, with a private package."""
    with GhcrDouble() as ghcr:
        yield RunningRegistry(ghcr, ghcr.user, ghcr.token)
