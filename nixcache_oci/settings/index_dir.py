"""Where the last good index is kept, for all commands that read a cache."""

from pathlib import Path

import platformdirs

from nixcache_oci.cache.index_folder import NOWHERE
from nixcache_oci.settings import variables
from nixcache_oci.settings.repository_config import APPLICATION
from nixcache_oci.settings.values import Values


def index_dir(values: Values) -> Path:
    """Return the folder for the indexes of all caches; ``NOWHERE`` for a user without a home folder.

    Raises:
        UsageError: a value that cannot be used.
    """
    # systemd.exec(5), CacheDirectory=: folders are separated by colons; ours comes first.
    of_service = values.environment.get("CACHE_DIRECTORY", "").partition(":")[0]
    given = values.get(variables.INDEX_DIR)
    if given is not None:
        return given
    if of_service:
        return Path(of_service)
    try:
        found = platformdirs.user_cache_path(APPLICATION, appauthor=False)
    except RuntimeError:  # no home folder
        return NOWHERE
    return found if found.is_absolute() else NOWHERE
