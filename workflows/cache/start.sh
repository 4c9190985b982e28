#!/usr/bin/env bash
# Starts the proxies and the queue, and points the Nix of all later steps at them.
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

# wait_for WHAT TEXT LOG…: waits until the process that was started last says this at the begin of a line, which takes it a
# second, and sets found to the line's rest.
wait_for() {
  local what=$1 text=$2 tries
  shift 2
  for ((tries = 0; tries < 300; tries++)); do
    found=$(sed -n "s|^$text ||p" "$1")
    if [ -n "$found" ]; then return; fi
    kill -0 "$!" 2>/dev/null || break
    sleep 0.1
  done
  fail "$what does not start: $(tail -n 1 "${!#}")"
}

# start_proxy REPO KEY…: serves a cache, whatever the job's settings say of upstreams and ports.
urls=() trusted=() started=()
start_proxy() {
  local repo=$1 log=$folder/proxy-${#started[@]}
  shift
  : >"$log.out"
  "${reader[@]}" NIXCACHE_REPO="$repo" NIXCACHE_PUBLIC_KEYS="$*" NIXCACHE_UPSTREAM= NIXCACHE_UPSTREAM_FILE= \
    NIXCACHE_LISTEN=127.0.0.1 NIXCACHE_PORT=0 nixcache-oci proxy </dev/null >"$log.out" 2>"$log.log" &
  started+=("$!")
  set_state proxies "${started[*]}"
  wait_for "the proxy for $repo" 'listening on' "$log.out" "$log.log"
  urls+=("$found") trusted+=("$@")
}

# start_queue: sets hook to the line by which Nix queues what it builds. Only this process is given the key; it restarts itself
# without it in its environment.
start_queue() {
  local log=$folder/queue.log
  export NIXCACHE_QUEUE_DIR=$folder/queue
  hook=$("${reader[@]}" nixcache-oci hook install 2>"$log") || fail "$(tail -n 1 "$log")"
  add_value --scope "$INPUT_SCOPE"
  add_switch --allow-unsigned "$INPUT_ALLOW_UNSIGNED"
  add_switch --new-key "$INPUT_NEW_KEY"
  add_upstream_key_names "$INPUT_UPSTREAM_KEY_NAMES"
  : >"$log"
  nixcache-oci queue run --keep-used ${arguments[@]+"${arguments[@]}"} </dev/null >"$log" 2>&1 &
  set_state queue "$!"
  wait_for 'the queue' 'publishing what is queued in' "$log"
}

# find_reading_reason: sets reason to why this job publishes nothing, or to nothing.
find_reading_reason() {
  find_foreign_reason
  if [ -n "$reason" ]; then return; fi
  if [ "${GITHUB_EVENT_NAME-}" = pull_request ] && ! is_true pull-requests "$INPUT_PULL_REQUESTS"; then
    reason='this is a pull request, and the input pull-requests is not true'
  elif ! has_key && ! is_true allow-unsigned "$INPUT_ALLOW_UNSIGNED"; then
    reason='there is no signing-key, as in every pull request of a bot'
  fi
}

command -v nix >/dev/null ||
  fail 'Nix is not on PATH: use the action workflows/setup of nixcache-oci, or another that installs Nix, before this one'
if is_blank "${NIX_SIGNING_KEY-}"; then unset NIX_SIGNING_KEY; fi
is_true strict "$INPUT_STRICT" || true # as stop.sh will want it
case $INPUT_TIMEOUT in
  '' | 0* | *[!0-9]*) fail "input timeout: expected a number of seconds, got '$INPUT_TIMEOUT'" ;;
esac
use_token
find_origin
set_up NIXCACHE_REGISTRY "$INPUT_REGISTRY"
set_up NIXCACHE_IMAGE "$INPUT_IMAGE"
set_up NIXCACHE_PUBLIC_KEYS "$INPUT_PUBLIC_KEYS"
if [ -z "${NIXCACHE_PUBLIC_KEYS-}" ] && [ -f public-key.txt ]; then
  NIXCACHE_PUBLIC_KEYS=$(<public-key.txt)
fi

reader=(env -u NIX_SIGNING_KEY -u NIXCACHE_SIGNING_KEY_FILE)
find_reading_reason
if [ "$origin" = foreign ]; then
  unset NIX_SIGNING_KEY NIXCACHE_TOKEN GITHUB_TOKEN GH_TOKEN
  keep_for_reading
  reader=(env -i "${kept[@]}")
fi
# shellcheck disable=SC2206 # no key has a space in it
keys=(${NIXCACHE_PUBLIC_KEYS-})
if [ -n "${OWN_PUBLIC_KEY-}" ]; then
  # Of one name there is one key, and what is committed counts.
  case " ${keys[*]-} " in *" ${OWN_PUBLIC_KEY%%:*}:"*) ;; *) keys+=("$OWN_PUBLIC_KEY") ;; esac
fi
unused=
if [ "${#keys[@]}" != 0 ]; then
  start_proxy "$NIXCACHE_REPO" "${keys[@]}"
else
  unused='the cache is not used, for no public key of it is known: commit public-key.txt, and check out before this step'
fi
while read -ra words; do
  case ${#words[@]} in
    0) ;;
    1) fail "input extra-caches: expected a public key after '${words[0]}'" ;;
    *) start_proxy "${words[@]}" ;;
  esac
done <<<"$INPUT_EXTRA_CACHES"
hook=
if [ -z "$reason" ]; then
  start_queue
  if [ -n "$unused" ]; then notice "$unused"; fi
else
  notice "publishing nothing: $reason${unused:+; $unused}"
fi

settings=
if [ "${#urls[@]}" != 0 ]; then
  settings+="extra-substituters = ${urls[*]}"$'\n'"extra-trusted-public-keys = ${trusted[*]}"$'\n'
fi
set_variable NIX_CONFIG "${NIX_CONFIG:+$NIX_CONFIG$'\n'}$settings$hook"
