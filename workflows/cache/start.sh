#!/usr/bin/env bash
# Starts the proxies, and points the Nix of all later steps at them.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"
# shellcheck source=workflows/shell/origin.sh
. "${BASH_SOURCE[0]%/*}/../shell/origin.sh"
set -m # what runs on is in a process group of its own, and no end of this step reaches it
folder=$RUNNER_TEMP/nixcache-oci
PATH=$folder/bin:$PATH

# set_state NAME VALUE: for stop.sh, which finds it as STATE_NAME.
set_state() { printf '%s=%s\n' "$1" "$2" >>"$GITHUB_STATE"; }

# set_variable NAME VALUE: for all later steps.
set_variable() {
  local word
  word=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  printf '%s<<%s\n%s\n%s\n' "$1" "$word" "$2" "$word" >>"$GITHUB_ENV"
}

# start_proxy REPO KEY…: serves a cache, whatever the job's settings say of upstreams and ports; it listens within a second.
urls=() trusted=() started=()
start_proxy() {
  local repo=$1 log=$folder/proxy-${#started[@]} tries url=
  shift
  : >"$log.out"
  "${reader[@]}" NIXCACHE_REPO="$repo" NIXCACHE_PUBLIC_KEYS="$*" NIXCACHE_UPSTREAM= NIXCACHE_UPSTREAM_FILE= \
    NIXCACHE_LISTEN=127.0.0.1 NIXCACHE_PORT=0 nixcache-oci proxy </dev/null >"$log.out" 2>"$log.log" &
  started+=("$!")
  set_state proxies "${started[*]}"
  for ((tries = 0; tries < 300; tries++)); do
    url=$(sed -n '1s/^listening on //p' "$log.out")
    if [ -n "$url" ] || ! kill -0 "$!" 2>/dev/null; then break; fi
    sleep 0.1
  done
  if [ -z "$url" ]; then fail "the proxy for $repo does not start: $(tail -n 1 "$log.log")"; fi
  urls+=("$url") trusted+=("$@")
}

command -v nix >/dev/null ||
  fail 'Nix is not on PATH: use the action workflows/setup of nixcache-oci, or another that installs Nix, before this one'
use_token
find_origin
set_up NIXCACHE_REGISTRY "$INPUT_REGISTRY"
set_up NIXCACHE_IMAGE "$INPUT_IMAGE"
set_up NIXCACHE_PUBLIC_KEYS "$INPUT_PUBLIC_KEYS"
if [ -z "${NIXCACHE_PUBLIC_KEYS-}" ] && [ -f public-key.txt ]; then
  NIXCACHE_PUBLIC_KEYS=$(<public-key.txt)
fi

reader=(env -u NIXCACHE_SIGNING_KEY_FILE)
if [ "$origin" = foreign ]; then
  unset NIXCACHE_TOKEN GITHUB_TOKEN GH_TOKEN
  keep_for_reading
  reader=(env -i "${kept[@]}")
fi
# shellcheck disable=SC2206 # no key has a space in it
keys=(${NIXCACHE_PUBLIC_KEYS-})
if [ "${#keys[@]}" != 0 ]; then
  start_proxy "$NIXCACHE_REPO" "${keys[@]}"
else
  notice 'the cache is not used, for no public key of it is known: commit public-key.txt, and check out before this step'
fi
while read -ra words; do
  case ${#words[@]} in
    0) ;;
    1) fail "input extra-caches: expected a public key after '${words[0]}'" ;;
    *) start_proxy "${words[@]}" ;;
  esac
done <<<"$INPUT_EXTRA_CACHES"

settings=
if [ "${#urls[@]}" != 0 ]; then
  settings+="extra-substituters = ${urls[*]}"$'\n'"extra-trusted-public-keys = ${trusted[*]}"$'\n'
fi
set_variable NIX_CONFIG "${NIX_CONFIG:+$NIX_CONFIG$'\n'}$settings"
