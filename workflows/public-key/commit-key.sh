#!/usr/bin/env bash
# Writes public keys into a file, one a line, and commits it.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "$(dirname "$0")/../shell/common.sh"
here=$(cd "$(dirname "$0")" && pwd)
read -r -a keys <<<"$INPUT_PUBLIC_KEY"
[ ${#keys[@]} -gt 0 ] || fail 'input public-key: there is none; give it the output public-key of workflows/publish'
for key in "${keys[@]}"; do
  # A secret key is twice as long, and must never be committed.
  [[ $key =~ ^[^:]+:[A-Za-z0-9+/]{43}=$ ]] || fail 'input public-key: expected name:base64 of 32 bytes'
done
printf '%s\n' "${keys[@]}" >"$INPUT_FILE"
exec bash "$here/../shell/commit-file.sh" "$INPUT_FILE" "$INPUT_MESSAGE"
