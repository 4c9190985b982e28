#!/usr/bin/env bash
# Stops what start.sh started, however the job ended.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"

folder=$RUNNER_TEMP/nixcache-oci
PATH=$folder/bin:$PATH

# is_alive PID: a container may have nobody who collects what has ended.
is_alive() {
  kill -0 "$1" 2>/dev/null || return 1
  case $(ps -o stat= -p "$1" 2>/dev/null) in Z*) return 1 ;; esac
}

# stop PID…: asks, and forces what is still there ten seconds later.
stop() {
  local pid tries
  for pid; do
    kill "$pid" 2>/dev/null || continue
    for ((tries = 0; tries < 100; tries++)); do
      is_alive "$pid" || continue 2
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

# drain: waits until all is published, and sets problem if it is not.
drain() {
  local status=0
  export NIXCACHE_QUEUE_DIR=$folder/queue
  set_up NIXCACHE_REGISTRY "$INPUT_REGISTRY"
  set_up NIXCACHE_IMAGE "$INPUT_IMAGE"
  # Without the key, which this process is not given, nobody else could publish what is left.
  if is_alive "$STATE_queue"; then
    guard nixcache-oci queue drain --timeout="$INPUT_TIMEOUT" || status=$?
  else
    status=1
  fi
  stop "$STATE_queue"
  guard cat "$folder/queue.log" || true
  if [ "$status" != 0 ]; then problem='not everything that this job built is published; the lines above say why'; fi
}

problem=
if [ -n "${STATE_queue-}" ]; then drain; fi
# shellcheck disable=SC2086 # numbers
stop ${STATE_proxies-}
if [ -n "$problem" ]; then
  if is_true strict "$INPUT_STRICT"; then fail "$problem"; fi
  tell warning "$problem"
fi
