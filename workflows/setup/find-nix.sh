#!/usr/bin/env bash
# Tells whether Nix has to be installed: missing=true or false.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"
missing=false
if is_true nix "$INPUT_NIX"; then
  keep_harmless
  if ! command -v nix >/dev/null; then missing=true; else guard env -i "${kept[@]}" nix --version; fi
fi
set_output missing "$missing"
