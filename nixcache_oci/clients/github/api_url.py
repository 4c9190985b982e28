"""Which REST API belongs to a registry.

Told by the registry's own name, so that its token never goes to some other server that the environment names.
Source: GitHub's documentation, "Working with the Container registry" and "Network details for GHE.com".
"""

from collections.abc import Mapping
from typing import Final

from nixcache_oci.clients.credentials import is_github, is_loopback
from nixcache_oci.clients.url import parse_url
from nixcache_oci.errors import UsageError

API_VARIABLE: Final = "GITHUB_API_URL"
_ENTERPRISE: Final = ".ghe.com"


def find_api_url(host: str, environment: Mapping[str, str]) -> str | None:
    """Give the address of the REST API, without a slash at its end; None where the registry is not GitHub's.

    Args:
        host: ``host[:port]`` of the registry.
        environment: ``GITHUB_API_URL`` counts only where it and the registry are both on this machine, as
            when another program plays GitHub. Every workflow has it, also one that publishes elsewhere.

    Raises:
        UsageError: ``GITHUB_API_URL`` would count, and is no address.
    """
    if is_github(host):
        name = host.lower().removesuffix(":443")
        if not name.endswith(_ENTERPRISE):
            return "https://api.github.com"
        return f"https://api.{name.removesuffix(_ENTERPRISE).rpartition('.')[2]}{_ENTERPRISE}"
    text = environment.get(API_VARIABLE, "").rstrip("/")
    if not text or not is_loopback(host):
        return None
    try:
        url = parse_url(text)
        name = url.origin().host or ""
    except ValueError as error:
        raise UsageError(f"{API_VARIABLE}: {text[:80]!r} is not the address of an API: {error}") from error
    is_here = is_loopback(f"[{name}]" if ":" in name else name)
    return text if is_here and url.scheme in {"http", "https"} else None
