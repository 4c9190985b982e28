"""Names of packages: what stays of a store object's name when its version changes.

Source: Nix manual, ``builtins.parseDrvName``.
"""

import re
from typing import Final

_VERSION: Final = re.compile(r"(?<!^)-(?![A-Za-z]|$).*")


def package_name(base_name: str) -> str:
    """Strip the version, and what follows it, from a store object's name without its hash part.

    The version begins at the first dash that is not followed by a letter; a name without one stays as it is.
    """
    return _VERSION.sub("", base_name, count=1)
