#!/usr/bin/env bash
# Builds and publishes; the program itself reads NIXCACHE_…, NIX_SIGNING_KEY and GITHUB_TOKEN, and writes the summary and
# the output public-key.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"

# find_origin: sets origin to own where the code is that of this repository, and to foreign where that is not known.
# action.yml decides the same before it hands out a secret.
find_origin() {
  origin=foreign
  if [ -z "${GITHUB_REPOSITORY-}" ]; then return; fi
  case ${GITHUB_EVENT_NAME-} in
    push | schedule | workflow_dispatch | repository_dispatch | release | create | merge_group | deployment)
      if [ "${HEAD_REPOSITORY:-$GITHUB_REPOSITORY}" = "$GITHUB_REPOSITORY" ]; then origin=own; fi
      ;;
    pull_request | workflow_run)
      # Nobody's, where the fork is deleted.
      if [ "${HEAD_REPOSITORY-}" = "$GITHUB_REPOSITORY" ]; then origin=own; fi
      ;;
  esac
}

# find_reading_reason: sets reason to why this run may only read, or to nothing.
find_reading_reason() {
  reason=
  if [ "$origin" = foreign ]; then
    reason="the code is ${HEAD_REPOSITORY:+that of $HEAD_REPOSITORY}"
    if [ -z "${HEAD_REPOSITORY-}" ]; then reason="${GITHUB_EVENT_NAME:-no event} does not tell whose code this is"; fi
  elif [ "${GITHUB_EVENT_NAME-}" = pull_request ]; then
    if ! is_true pull-requests "${INPUT_PULL_REQUESTS:-false}"; then
      reason='this is a pull request, and the input pull-requests is not true'
    elif ! has_key && ! is_true allow-unsigned "$INPUT_ALLOW_UNSIGNED"; then
      reason='there is no signing-key for this pull request, as for every one of a bot'
    fi
  fi
}

has_key() { ! is_blank "${NIX_SIGNING_KEY-}${NIXCACHE_SIGNING_KEY_FILE-}"; }

# What only reads runs without anything that is secret, or that could be.
become_reader() {
  local line settings=
  while IFS= read -r line; do
    case $line in *access-tokens* | *netrc-file* | *secret-key-files*) ;; *) settings+=$line$'\n' ;; esac
  done <<<"${NIX_CONFIG-}"
  if [ -n "${NIX_CONFIG-}" ]; then NIX_CONFIG=$settings; fi
  keep_harmless
  unset NIXCACHE_SIGNING_KEY_FILE NIXCACHE_TOKEN_FILE NIXCACHE_TOKEN NIXCACHE_PASS_ENV
  case ${NIXCACHE_UPSTREAM-} in *@*) unset NIXCACHE_UPSTREAM ;; esac
  keep LD_LIBRARY_PATH "${!NIXCACHE_@}"
  keep_unless_secret "${!GITHUB_@}" "${!RUNNER_@}"
  # Nor with what somebody logged in to by docker.
  exec env -i "${kept[@]}" DOCKER_CONFIG=/nonexistent nixcache-oci publish --build-only ${arguments[@]+"${arguments[@]}"}
}

# A job with secrets and a token that may write, for a stranger's code: not even built.
if [ "${GITHUB_EVENT_NAME-}" = pull_request_target ]; then
  fail 'publishing is refused on pull_request_target: it would hand the signing key to whoever opens a pull request'
fi
if is_blank "${NIX_SIGNING_KEY-}"; then unset NIX_SIGNING_KEY; fi
use_token
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
if [ "$INPUT_UPSTREAM_KEY_NAMES" = none ]; then
  arguments+=(--upstream-key-name=)
else
  add_lines --upstream-key-name "$INPUT_UPSTREAM_KEY_NAMES"
fi

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
