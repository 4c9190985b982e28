#!/usr/bin/env bash
# Stops what start.sh started, however the job ended.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"

# stop PID…: asks, and forces what is still there ten seconds later.
stop() {
  local pid tries
  for pid; do
    kill "$pid" 2>/dev/null || continue
    for ((tries = 0; tries < 100; tries++)); do
      kill -0 "$pid" 2>/dev/null || continue 2
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

# shellcheck disable=SC2086 # numbers
stop ${STATE_proxies-}
