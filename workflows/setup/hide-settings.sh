#!/usr/bin/env bash
# The installer writes the job's token into nix.conf, so that Nix fetches from GitHub without a limit. Builds run as other
# users, and may do so without a sandbox, as on macOS: only this user and root read it from now on.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"
settings=${NIX_CONF_DIR:-/etc/nix}/nix.conf
if [ ! -f "$settings" ] || ! grep -q '^ *access-tokens' "$settings"; then exit; fi
hide() { ${1+"$@"} chown "$(id -u)" "$settings" && ${1+"$@"} chmod 600 "$settings"; }
guard hide || guard hide sudo -n || fail "$settings holds the job's token, and cannot be kept from builds"
