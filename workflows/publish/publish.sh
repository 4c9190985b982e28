#!/usr/bin/env bash
# Builds and publishes; the program itself reads NIXCACHE_…, NIX_SIGNING_KEY and GITHUB_TOKEN, and writes the summary and
# the output public-key.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"
# shellcheck source=workflows/shell/origin.sh
. "${BASH_SOURCE[0]%/*}/../shell/origin.sh"

# find_reading_reason: sets reason to why this run may only read, or to nothing.
find_reading_reason() {
  find_foreign_reason
  if [ -n "$reason" ]; then return; fi
  if [ "${GITHUB_EVENT_NAME-}" = pull_request ]; then
    if ! is_true pull-requests "${INPUT_PULL_REQUESTS:-false}"; then
      reason='this is a pull request, and the input pull-requests is not true'
    elif ! has_key && ! is_true allow-unsigned "$INPUT_ALLOW_UNSIGNED"; then
      reason='there is no signing-key for this pull request, as for every one of a bot'
    fi
  fi
}

# What only reads runs without anything that is secret, or that could be.
become_reader() {
  local line settings=
  while IFS= read -r line; do
    case $line in *access-tokens* | *netrc-file* | *secret-key-files*) ;; *) settings+=$line$'\n' ;; esac
  done <<<"${NIX_CONFIG-}"
  if [ -n "${NIX_CONFIG-}" ]; then NIX_CONFIG=$settings; fi
  keep_for_reading
  exec env -i "${kept[@]}" nixcache-oci publish --build-only ${arguments[@]+"${arguments[@]}"}
}

# A job with secrets and a token that may write, for a stranger's code: not even built.
if [ "${GITHUB_EVENT_NAME-}" = pull_request_target ]; then
  fail 'publishing is refused on pull_request_target: it would hand the signing key to whoever opens a pull request'
fi
if is_blank "${NIX_SIGNING_KEY-}"; then unset NIX_SIGNING_KEY; fi
use_token
# action.yml decides the same before it hands out a secret.
find_origin
if [ "$origin" = foreign ]; then unset NIX_SIGNING_KEY NIXCACHE_TOKEN GITHUB_TOKEN GH_TOKEN; fi

require_program
command -v nix >/dev/null || fail 'Nix is not on PATH: use the action workflows/setup of nixcache-oci before this one'
set_up NIXCACHE_CONFIG_DIR "$INPUT_FLAKE"
set_up NIXCACHE_REGISTRY "$INPUT_REGISTRY"
set_up NIXCACHE_IMAGE "$INPUT_IMAGE"
add_switch --dry-run "$INPUT_DRY_RUN"
add_switch --checks "$INPUT_CHECKS"
add_switch --strict "$INPUT_STRICT"
add_switch --allow-unsigned "$INPUT_ALLOW_UNSIGNED"
add_switch --new-key "${INPUT_NEW_KEY:-false}"
add_value --scope "$INPUT_SCOPE"
add_lines --attr "$INPUT_ATTR"
add_lines --system "${INPUT_SYSTEM-}"
add_upstream_key_names "$INPUT_UPSTREAM_KEY_NAMES"

find_reading_reason
if [ -n "$reason" ]; then
  notice "building, and pushing nothing: $reason"
  become_reader
fi
# A setting of a flake may be a program, which runs as this user.
add_switch --accept-flake-config "$INPUT_ACCEPT_FLAKE_CONFIG"
if ! has_key && ! is_true allow-unsigned "$INPUT_ALLOW_UNSIGNED" && ! is_true dry-run "$INPUT_DRY_RUN"; then
  fail "there is no signing-key: nixcache-oci keygen NAME-1 makes one, whose NAME-1.sec goes into the repository's \
secret NIX_SIGNING_KEY; or set allow-unsigned: true to publish unsigned paths"
fi
become_program publish
