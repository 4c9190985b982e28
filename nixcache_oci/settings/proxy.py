"""The settings of the verb ``proxy``."""

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
    )
