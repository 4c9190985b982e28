#!/usr/bin/env bash
# Updates all inputs of a flake, and commits its lock.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "$(dirname "$0")/../shell/common.sh"
here=$(cd "$(dirname "$0")" && pwd)
command -v nix >/dev/null || fail 'Nix is not on PATH: use the action workflows/setup of nixcache-oci before this one'
[ -f "$INPUT_FLAKE/flake.nix" ] || fail "input flake: there is no $INPUT_FLAKE/flake.nix"
# In the folder, for the meaning of an argument differs between versions of Nix.
cd -- "$INPUT_FLAKE"
nix --extra-experimental-features 'nix-command flakes' flake update
exec bash "$here/../shell/commit-file.sh" flake.lock "$INPUT_MESSAGE"
