"""The settings of the verb ``proxy``."""

from collections.abc import Mapping
from contextlib import suppress

from nixcache_oci.clients.local_store.nix_settings import read_nix_conf
from nixcache_oci.errors import FormatError, UsageError
from nixcache_oci.nix.nix_conf import TRUSTED_PUBLIC_KEYS, find_values
from nixcache_oci.nix.signature import PublicKey
from nixcache_oci.nix.variants import NIXOS_KEY
from nixcache_oci.proxy.config import ProxyConfig, TlsFiles
from nixcache_oci.settings import variables
from nixcache_oci.settings.file_config import upstream_urls
from nixcache_oci.settings.repository_config import index_dir
from nixcache_oci.settings.values import Values


def proxy_config(values: Values) -> ProxyConfig:
    """Parse the proxy's settings; raises UsageError for a value that cannot be used."""
    return ProxyConfig(
        listen=values.get(variables.LISTEN),
        port=values.get(variables.PORT),
        upstreams=upstream_urls(values),
        index_ttl_seconds=values.get(variables.INDEX_TTL),
        index_dir=index_dir(values),
        pack_memory_bytes=values.get(variables.PACK_MEMORY),
        priority=values.get(variables.PRIORITY),
        store_dir=values.get(variables.STORE_DIR),
        upstream_nars=values.get(variables.UPSTREAM_NARS),
        ahead=values.get(variables.AHEAD),
        hosts=values.get(variables.HOSTS),
        trusted_keys=trusted_keys(values.environment),
        tls=_tls_files(values),
    )


def _tls_files(values: Values) -> TlsFiles | None:
    certificate, key = values.get(variables.TLS_CERT), values.get(variables.TLS_KEY)
    authorities = values.get(variables.TLS_CLIENT_CA)
    if certificate is not None and key is not None:
        return TlsFiles(certificate, key, authorities)
    if certificate is not None or key is not None or authorities is not None:
        raise UsageError(
            f"HTTPS needs {variables.TLS_CERT.name} and {variables.TLS_KEY.name}, and one of them is not set"
        )
    return None


def trusted_keys(environment: Mapping[str, str]) -> tuple[PublicKey, ...]:
    """Read which keys Nix on this machine trusts: a hit that one of them signed needs no other signature.

    Unreadable and included files are skipped: a missed key costs requests to upstreams, and no trust.
    """
    settings = read_nix_conf(environment, with_users=False)
    has_all = any(one.name == TRUSTED_PUBLIC_KEYS and not one.is_extra for one in settings)
    keys = [] if has_all else [NIXOS_KEY]
    for value in find_values(settings, TRUSTED_PUBLIC_KEYS):
        with suppress(FormatError):
            keys.append(PublicKey.parse(value))
    return tuple(dict.fromkeys(keys))
