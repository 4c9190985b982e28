"""Chooses the environment of the programs that are started here. No I/O.

Foreign code can read what Nix gets: a fixed-output derivation by ``impureEnvVars``, a file by
``builtins.getEnv``, a hook directly. So only variables that are known to be harmless are passed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

PASS_ENV_VARIABLE: Final = "NIXCACHE_PASS_ENV"  # noqa: S105 -- the name of a variable, no secret

SECRET_VARIABLES: Final = frozenset({"NIX_SIGNING_KEY", "GITHUB_TOKEN", "GH_TOKEN"})
"""This program's own secrets; no setting passes them on."""

OWN_PREFIX: Final = "NIXCACHE_"

_NAMES: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TERM", "TMPDIR", "NO_COLOR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"),
    }
)
# Nix files read switches such as NIXPKGS_ALLOW_UNFREE.
_PREFIXES: Final = ("LC_", "NIX_", "NIXPKGS_ALLOW_", "XDG_")
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})
_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose a program's environment: what is harmless, and what ``NIXCACHE_PASS_ENV`` names."""
    passed = set(environment.get(PASS_ENV_VARIABLE, "").split())
    return {
        name: value
        for name, value in environment.items()
        if is_harmless(name) or (name in passed and may_pass(name))
    }


def is_harmless(name: str) -> bool:
    """Tell whether anybody may read a variable of this name."""
    if name in _NAMES or name.lower() in _PROXIES:
        return True
    return name.startswith(_PREFIXES) and _SECRET_NAME.search(name) is None


def may_pass(name: str) -> bool:
    """Tell whether a user may pass such a variable on: no secret or setting of this program."""
    return name not in SECRET_VARIABLES and not name.startswith(OWN_PREFIX)


def find_refused(names: Iterable[str]) -> str | None:
    """Find the first of these names that may not be passed on."""
    return next((name for name in names if not may_pass(name)), None)
