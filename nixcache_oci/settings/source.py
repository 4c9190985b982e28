"""Which GitHub repository a cache belongs to, for the annotation by which GHCR links a package to it."""

from nixcache_oci.settings import variables
from nixcache_oci.settings.repository import RegistryLocation, RepositoryConfig
from nixcache_oci.settings.values import Values


def repository_source(location: RepositoryConfig, values: Values) -> str | None:
    """Give the address of the repository; None where the cache belongs to none."""
    repo = values.get(variables.REPO)
    # Of another depth it is the name in some registry alone.
    if not isinstance(location, RegistryLocation) or repo is None or repo.count("/") != 1:
        return None
    return f"{values.environment.get('GITHUB_SERVER_URL') or 'https://github.com'}/{repo}"
