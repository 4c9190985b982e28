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
forbid_git_programs
guard env -i "${kept[@]}" "${git_settings[@]}" nix --extra-experimental-features 'nix-command flakes' flake update
INPUT_TOKEN=$token exec "$BASH" -p "$actions/shell/commit-file.sh" flake.lock "$INPUT_MESSAGE"
