#!/usr/bin/env bash
# Tells whether Nix has to be installed: missing=true or false.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "$(dirname "$0")/../shell/common.sh"
missing=false
if is_true nix "$INPUT_NIX"; then
  if ! command -v nix >/dev/null; then missing=true; else nix --version; fi
fi
set_output missing "$missing"
