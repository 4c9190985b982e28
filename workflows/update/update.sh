#!/usr/bin/env bash
# Updates all inputs of a flake, and commits its lock. INPUT_TOKEN may push; only the push sees it.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"

# Inputs are other people's code.
hide_token "$@"

command -v nix >/dev/null || fail 'Nix is not on PATH: use the action workflows/setup of nixcache-oci before this one'
[ -f "$INPUT_FLAKE/flake.nix" ] || fail "input flake: there is no $INPUT_FLAKE/flake.nix"
# In the folder, for the meaning of an argument differs between versions of Nix.
cd -- "$INPUT_FLAKE"
keep_harmless
# Nix runs git in the checkout, whose own settings may name programs.
kept+=(GIT_CONFIG_COUNT=2 GIT_CONFIG_KEY_0=core.fsmonitor GIT_CONFIG_VALUE_0=false)
kept+=(GIT_CONFIG_KEY_1=core.hooksPath GIT_CONFIG_VALUE_1=/dev/null)
guard env -i "${kept[@]}" nix --extra-experimental-features 'nix-command flakes' flake update
INPUT_TOKEN=$token exec "$BASH" -p "$actions/shell/commit-file.sh" flake.lock "$INPUT_MESSAGE"
