# shellcheck shell=bash
# Whose code a job runs, and what an action that publishes may do for it: for publish and cache, beside common.sh.

# find_origin: sets origin to own where the code is that of this repository, and to foreign where that is not known.
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

# find_foreign_reason: sets reason to why code of this origin may only read the cache, or to nothing.
# shellcheck disable=SC2034 # for the script
find_foreign_reason() {
  reason=
  if [ "$origin" != foreign ]; then return; fi
  reason="the code is ${HEAD_REPOSITORY:+that of $HEAD_REPOSITORY}"
  if [ -z "${HEAD_REPOSITORY-}" ]; then reason="${GITHUB_EVENT_NAME:-no event} does not tell whose code this is"; fi
}

has_key() { ! is_blank "${NIX_SIGNING_KEY-}${NIXCACHE_SIGNING_KEY_FILE-}"; }

# keep_for_reading: begins the list kept with what the program needs to read a public cache, and nothing that is secret, or
# that could be.
keep_for_reading() {
  local name
  keep_harmless
  keep LD_LIBRARY_PATH
  for name in "${!NIXCACHE_@}"; do
    case $name in
      NIXCACHE_SIGNING_KEY_FILE | NIXCACHE_TOKEN_FILE | NIXCACHE_TOKEN | NIXCACHE_PASS_ENV) ;;
      NIXCACHE_UPSTREAM) case $NIXCACHE_UPSTREAM in *@*) ;; *) keep NIXCACHE_UPSTREAM ;; esac ;;
      *) keep "$name" ;;
    esac
  done
  keep_unless_secret "${!GITHUB_@}" "${!RUNNER_@}"
  # Nor what somebody logged in to by docker.
  kept+=(DOCKER_CONFIG=/nonexistent)
}

# add_upstream_key_names LINES
add_upstream_key_names() {
  if [ "$1" = none ]; then arguments+=(--upstream-key-name=); else add_lines --upstream-key-name "$1"; fi
}
