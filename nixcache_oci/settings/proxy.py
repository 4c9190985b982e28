"""The settings of the verb ``proxy``."""

from pathlib import Path

import platformdirs

from nixcache_oci.proxy.config import ProxyConfig
from nixcache_oci.settings import table
from nixcache_oci.settings.repository import APPLICATION
from nixcache_oci.settings.variable import Values


def proxy_config(values: Values) -> ProxyConfig:
    """Parse what the proxy is told.

    Raises:
        UsageError: a value that cannot be used.
    """
    return ProxyConfig(
        listen=values.get(table.LISTEN),
        port=values.get(table.PORT),
        upstreams=values.get(table.UPSTREAM),
        index_ttl_seconds=values.get(table.INDEX_TTL),
        index_dir=values.get(table.INDEX_DIR) or _default_index_dir(values),
        priority=values.get(table.PRIORITY),
        store_dir=values.get(table.STORE_DIR),
        upstream_nars=values.get(table.UPSTREAM_NARS),
        hosts=values.get(table.HOSTS),
        public_keys=values.get(table.PUBLIC_KEYS),
    )


def _default_index_dir(values: Values) -> Path:
    # systemd.exec(5), CacheDirectory=: several folders are joined by colons; ours comes first.
    of_service = values.environment.get("CACHE_DIRECTORY", "").partition(":")[0]
    return Path(of_service) if of_service else platformdirs.user_cache_path(APPLICATION, appauthor=False)
