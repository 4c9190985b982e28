"""Which HTTP proxy Nix asks for a URL: libcurl decides that, by variables of the environment.

Programs differ in this: libcurl takes no HTTP_PROXY in capitals, compares addresses with addresses and
networks only, and does not look names up. Source: libcurl-env(3), CURLOPT_PROXY(3), CURLOPT_NOPROXY(3).
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

_PROXIES: Final = ("http_proxy", "all_proxy", "ALL_PROXY")
_EXCEPTIONS: Final = ("no_proxy", "NO_PROXY")


def find_http_proxy(url: str, environment: Mapping[str, str]) -> str | None:
    """Find the variable whose HTTP proxy an ``http`` URL is asked through; None where it is asked itself."""
    variable = _first(_PROXIES, environment)
    host = urlsplit(url).hostname or ""
    is_exception = any(_covers(word, host) for word in no_proxy_words(environment))
    return None if variable is None or is_exception else variable


def no_proxy_words(environment: Mapping[str, str]) -> list[str]:
    """Tell what is asked without an HTTP proxy."""
    variable = _first(_EXCEPTIONS, environment)
    return [] if variable is None else [word for word in re.split(r"[,\s]+", environment[variable]) if word]


def _first(names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """An empty variable is none."""
    return next((name for name in names if environment.get(name)), None)


def _covers(word: str, host: str) -> bool:
    if word == "*":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = word.strip(".").lower()
        return host.lower() == name or host.lower().endswith(f".{name}")
    try:
        return address in ipaddress.ip_network(word.strip("[]"), strict=False)
    except ValueError:
        return False
