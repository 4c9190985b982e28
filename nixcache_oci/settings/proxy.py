"""The settings of the verb ``proxy``."""

from collections.abc import Mapping
from contextlib import suppress

from nixcache_oci.clients.nix_conf_files import read_nix_conf
from nixcache_oci.errors import FormatError
from nixcache_oci.nix.nix_conf import TRUSTED_PUBLIC_KEYS, find_values
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.variants import NIXOS_KEY
from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.settings import table
from nixcache_oci.settings.index_dir import index_dir
from nixcache_oci.settings.upstreams import upstream_urls
from nixcache_oci.settings.variable import Values


def proxy_config(values: Values) -> ProxyConfig:
    """Parse what the proxy is told.

    Raises:
        UsageError: a value that cannot be used.
    """
    return ProxyConfig(
        listen=values.get(table.LISTEN),
        port=values.get(table.PORT),
        upstreams=upstream_urls(values),
        index_ttl_seconds=values.get(table.INDEX_TTL),
        index_dir=index_dir(values),
        pack_memory_bytes=values.get(table.PACK_MEMORY),
        priority=values.get(table.PRIORITY),
        store_dir=values.get(table.STORE_DIR),
        upstream_nars=values.get(table.UPSTREAM_NARS),
        hosts=values.get(table.HOSTS),
        public_keys=values.get(table.PUBLIC_KEYS),
        trusted_keys=trusted_keys(values.environment),
    )


def trusted_keys(environment: Mapping[str, str]) -> tuple[PublicKey, ...]:
    """Read which keys Nix on this machine trusts: a hit that one of them signed needs no other signature.

    What cannot be read says nothing, and files that nix.conf includes are left out: then more is asked of
    upstreams than is needed, and nothing is trusted.
    """
    settings = read_nix_conf(environment, with_users=False)
    has_all = any(one.name == TRUSTED_PUBLIC_KEYS and not one.is_extra for one in settings)
    keys = [] if has_all else [NIXOS_KEY]
    for value in find_values(settings, TRUSTED_PUBLIC_KEYS):
        with suppress(FormatError):
            keys.append(PublicKey.parse(value))
    return tuple(dict.fromkeys(keys))
