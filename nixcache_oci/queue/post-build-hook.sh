#!/bin/sh
# Queues what Nix has built; written by `nixcache-oci hook install`. It ends with 0 even where it fails: Nix
# would fail the build, and never run the hook for it again.
{
  # The daemon's PATH may lack all of it.
  PATH="${PATH:+$PATH:}/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:/usr/bin:/bin"
  umask 022
  # No link in the folder is written through, and the `?` of a name is no pattern.
  set -Cf
  events=@events@
  # One event a derivation: built again, it says the same.
  name=${DRV_PATH##*/}
  name=${name%%-*}
  unfinished="$events/.nixcache-unfinished-$name-$$"
  # Nix 2.8 sets OUT_PATHS, but leaves it empty.
  set -- ${OUT_PATHS:-}
  [ "$#" -gt 0 ] || set -- ${DRV_PATH:+"outputs-of $DRV_PATH"}
  printf '%s\n' "$@" > "$unfinished" && mv "$unfinished" "$events/${name:-$$}" || rm -f "$unfinished"
} < /dev/null > /dev/null 2>&1
exit 0
