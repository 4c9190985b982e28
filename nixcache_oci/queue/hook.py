"""The post-build hook: a shell script that queues what Nix has built, and never fails.

Nix fails a build whose hook fails, and never runs the hook for it again; while the hook runs, Nix waits. So
the script, post-build-hook.sh, needs nothing but a shell and mv, and ends with 0 whatever happens. The
NixOS module makes it of the same file. Source: Nix manual, "Using the post-build-hook".
"""

import shlex
from importlib.resources import files
from pathlib import Path
from typing import Final

from nixcache_oci.queue.spool import Spool

HOOK_NAME: Final = "post-build-hook"
"""Name of the script in the queue's folder; Nix takes no arguments for it, and no spaces."""


def render_hook(queue_folder: Path) -> str:
    """Write the hook for the queue in this folder."""
    events = shlex.quote(str(Spool.of(queue_folder).folder))
    return (
        files(__package__).joinpath(f"{HOOK_NAME}.sh").read_text(encoding="utf-8").replace("@events@", events)
    )
