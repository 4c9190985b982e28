"""Reads upstreams' user names and passwords from netrc files, for the upstream's own host only.

The first of these files that knows the host wins:

1. the file that ``NETRC`` names;
2. Nix's own: its setting ``netrc-file``, or ``netrc`` beside ``nix.conf``;
3. ``.netrc`` in the home folder, without its ``default``, which was not written with caches in mind.

The registry's credentials come from elsewhere, and a redirect never carries these to another host.

Sources: Nix manual, "nix.conf", netrc-file; curl's manual, ".netrc"; Python's ``netrc`` reads the files.
"""

import logging
import netrc
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from nixcache_oci.clients.http.forward_proxy import check_proxies
from nixcache_oci.clients.http.url import basic_authorization
from nixcache_oci.clients.local_store.nix_settings import nix_conf_folder, read_nix_conf
from nixcache_oci.clients.upstream.address import Upstream, parse_upstream

_NETRC_FILE: Final = "netrc-file"
_MOST_BYTES: Final = 1024 * 1024  # of a netrc file

_log = logging.getLogger(__name__)


def open_upstreams(urls: Iterable[str], environment: Mapping[str, str] = os.environ) -> list[Upstream]:
    """Parse the URLs of upstreams, check their HTTP proxies, and add credentials from netrc files.

    An unreadable or malformed netrc file costs one warning: most upstreams are public, and a service may not
    be allowed to read root's file. Raises UsageError if a URL is none, or needs a proxy that cannot be used.
    """
    upstreams = [parse_upstream(url) for url in urls]
    check_proxies((upstream.base for upstream in upstreams), environment)
    if all(upstream.authorization for upstream in upstreams):
        return upstreams
    books = list(_read_all(environment))
    return [one if one.authorization else replace(one, authorization=_find(one, books)) for one in upstreams]


def _find(upstream: Upstream, books: Iterable[Mapping[str, str]]) -> str:
    host = (upstream.base.host or "").lower()
    return next((book[name] for book in books for name in (host, "default") if name in book), "")


def _read_all(environment: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """Read each file: an Authorization by host, one of which may be ``default``."""
    if named := environment.get("NETRC"):
        yield _read(Path(named))
    yield _read(find_nix_netrc(environment))
    if home := environment.get("HOME"):
        yield {host: value for host, value in _read(Path(home) / ".netrc").items() if host != "default"}


def _read(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"over {_MOST_BYTES} bytes")  # noqa: TRY301  one of the reasons below
        hosts = netrc.netrc(path).hosts
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, netrc.NetrcParseError) as error:
        # Without the parser's own text, which quotes the file.
        line = f"line {error.lineno} is malformed" if isinstance(error, netrc.NetrcParseError) else ""
        reason = line or getattr(error, "strerror", None) or "it is not a netrc file"
        _log.warning("%s: %s; continuing without it", path, reason)
        return {}
    return {
        host.lower(): basic_authorization(login, password or "")
        for host, (login, _, password) in hosts.items()
        if login or password
    }


def find_nix_netrc(environment: Mapping[str, str]) -> Path:
    """Find the netrc file that Nix reads, which need not exist."""
    found = nix_conf_folder(environment) / "netrc"
    for setting in read_nix_conf(environment, with_users=True):
        if setting.name == _NETRC_FILE and len(setting.values) == 1:
            found = Path(setting.values[0])
    return found
