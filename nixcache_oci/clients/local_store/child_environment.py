"""Which environment variables the programs that are started here get.

What Nix gets, foreign code can read: a fixed-output derivation by ``impureEnvVars``, a file by
``builtins.getEnv``, a hook as it is. So a variable passes because it is known to be harmless, and not because
nobody thought of it. No I/O.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

PASS_ENV_VARIABLE: Final = "NIXCACHE_PASS_ENV"  # noqa: S105 -- the name of a variable, no secret

SECRET_VARIABLES: Final = frozenset({"NIX_SIGNING_KEY", "GITHUB_TOKEN", "GH_TOKEN"})
"""What this program itself is given as secrets; no setting passes them on."""

OWN_PREFIX: Final = "NIXCACHE_"

_NAMES: Final = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TERM", "TMPDIR", "NO_COLOR"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO"),
    }
)
# NIXPKGS_ALLOW_UNFREE and its like are switches that files ask for.
_PREFIXES: Final = ("LC_", "NIX_", "NIXPKGS_ALLOW_", "XDG_")
_PROXIES: Final = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"})
_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Choose what a program gets: what is harmless, and what ``NIXCACHE_PASS_ENV`` names.

    Args:
        environment: all variables that this program was given.
    """
    passed = set(environment.get(PASS_ENV_VARIABLE, "").split())
    return {
        name: value
        for name, value in environment.items()
        if is_harmless(name) or (name in passed and may_pass(name))
    }


def is_harmless(name: str) -> bool:
    """Tell whether everybody may read a variable of this name."""
    if name in _NAMES or name.lower() in _PROXIES:
        return True
    return name.startswith(_PREFIXES) and _SECRET_NAME.search(name) is None


def may_pass(name: str) -> bool:
    """Tell whether a user may pass such a variable on: no secret, and no setting, of this program."""
    return name not in SECRET_VARIABLES and not name.startswith(OWN_PREFIX)


def find_refused(names: Iterable[str]) -> str | None:
    """Find the first of these names that may not be passed on."""
    return next((name for name in names if not may_pass(name)), None)
