"""The post-build hook: a shell script that queues what Nix has built, and never fails.

Nix fails a build whose hook fails, and never runs the hook for it again; while the hook runs, Nix waits. So
the script needs nothing but a shell, date and mv, and ends with 0 whatever happens. Source: Nix manual,
"Using the post-build-hook".
"""

import shlex
from pathlib import Path
from typing import Final

from nixcache_oci.queue.spool import OUTPUTS_OF, Spool

HOOK_NAME: Final = "post-build-hook"
"""Name of the script in the queue's folder; Nix takes no arguments for it, and no spaces."""

# The daemon's PATH may lack all of it. `set -C`, so that no link in the folder is written through; `set -f`,
# because the name of a store path may have a `?`.
_SCRIPT: Final = """\
#!/bin/sh
# Queues what Nix has built; written by `nixcache-oci hook install`. It ends with 0 even where it fails: Nix
# would fail the build, and never run the hook for it again.
{{
  PATH="${{PATH:+$PATH:}}/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/bin:/bin"
  umask 022
  set -Cf
  events={events}
  name="$(date +%s)-$$-0"
  unfinished="$events/.nixcache-unfinished-$name"
  # Nix 2.8 sets OUT_PATHS, but leaves it empty.
  set -- ${{OUT_PATHS:-}}
  [ "$#" -gt 0 ] || set -- ${{DRV_PATH:+"{outputs_of}$DRV_PATH"}}
  printf '%s\n' "$@" > "$unfinished" && mv "$unfinished" "$events/$name" || rm -f "$unfinished"
}} < /dev/null > /dev/null 2>&1
exit 0
"""


def render_hook(queue_folder: Path) -> str:
    """Write the hook for the queue in this folder. No I/O."""
    events = shlex.quote(str(Spool.of(queue_folder).folder))
    return _SCRIPT.format(events=events, outputs_of=OUTPUTS_OF)
