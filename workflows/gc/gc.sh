#!/usr/bin/env bash
# Collects garbage; the program itself reads NIXCACHE_… and GITHUB_TOKEN, and writes the summary.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"
require_program
use_token
set_up NIXCACHE_REGISTRY "$INPUT_REGISTRY"
set_up NIXCACHE_IMAGE "$INPUT_IMAGE"
set_up NIXCACHE_PUBLIC_KEYS "$INPUT_PUBLIC_KEYS"
if [ -z "${NIXCACHE_PUBLIC_KEYS-}" ] && [ -f public-key.txt ]; then
  set_up NIXCACHE_PUBLIC_KEYS "$(<public-key.txt)"
fi
add_switch --dry-run "$INPUT_DRY_RUN"
add_switch --force "$INPUT_FORCE"
add_value --retention-days "$INPUT_RETENTION_DAYS"
add_value --scope-ttl "$INPUT_SCOPE_TTL"
add_value --grace-days "$INPUT_GRACE_DAYS"
become_program gc
