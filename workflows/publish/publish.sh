#!/usr/bin/env bash
# Builds and publishes; the program itself reads NIXCACHE_…, NIX_SIGNING_KEY and GITHUB_TOKEN, and writes the summary.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "$(dirname "$0")/../shell/common.sh"
require_program
command -v nix >/dev/null || fail 'Nix is not on PATH: use the action workflows/setup of nixcache-oci before this one'

# Secrets and a token that may write, in a job that runs a stranger's code.
if [ "$GITHUB_EVENT_NAME" = pull_request_target ]; then
  fail 'publishing is refused on pull_request_target: it would hand the signing key to whoever opens a pull request'
fi
if [ -n "$HEAD_REPOSITORY" ] && [ "$HEAD_REPOSITORY" != "$GITHUB_REPOSITORY" ]; then
  notice "the code is that of $HEAD_REPOSITORY: it is built, and nothing is pushed"
  INPUT_DRY_RUN=true
fi

set_up NIXCACHE_CONFIG_DIR "$INPUT_FLAKE"
set_up NIXCACHE_REGISTRY "$INPUT_REGISTRY"
set_up NIXCACHE_IMAGE "$INPUT_IMAGE"
add_switch --dry-run "$INPUT_DRY_RUN"
add_switch --checks "$INPUT_CHECKS"
add_switch --strict "$INPUT_STRICT"
add_switch --accept-flake-config "$INPUT_ACCEPT_FLAKE_CONFIG"
add_value --scope "$INPUT_SCOPE"
add_lines --attr "$INPUT_ATTR"
if [ "$INPUT_UPSTREAM_KEY_NAMES" = none ]; then
  arguments+=(--upstream-key-name=)
else
  add_lines --upstream-key-name "$INPUT_UPSTREAM_KEY_NAMES"
fi

keys=$RUNNER_TEMP/nixcache-oci-public-keys
rm -f "$keys"
if [ -n "$NIX_SIGNING_KEY${NIXCACHE_SIGNING_KEY_FILE-}" ]; then
  arguments+=("--public-key-file=$keys")
elif ! is_true allow-unsigned "$INPUT_ALLOW_UNSIGNED" && ! is_true dry-run "$INPUT_DRY_RUN"; then
  fail "there is no signing-key: nixcache-oci keygen NAME-1 makes one, whose NAME-1.sec goes into the repository's \
secret NIX_SIGNING_KEY; or set allow-unsigned: true"
fi

status=0
run_program publish || status=$?
# Also where an output failed: the others were published.
if [ -s "$keys" ]; then set_output public-key "$(paste -s -d ' ' "$keys")"; fi
exit "$status"
