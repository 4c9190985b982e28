#!/usr/bin/env bash
# Writes public keys into a file, one a line, and commits it. A key that clients trust already is never replaced unasked.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"
hide_token "$@"
read -r -d '' -a keys <<<"$INPUT_PUBLIC_KEY" || true
[ ${#keys[@]} -gt 0 ] || fail 'input public-key: there is none; give it the output public-key of workflows/publish'
for key in "${keys[@]}"; do
  # A secret key is twice as long, and must never be committed.
  [[ $key =~ ^[^:[:cntrl:]]+:[A-Za-z0-9+/]{43}=$ ]] || fail 'input public-key: expected name:base64 of 32 bytes'
done

# A link could lead anywhere.
if [ -L "$INPUT_FILE" ] || { [ -e "$INPUT_FILE" ] && [ ! -f "$INPUT_FILE" ]; }; then
  fail "input file: $INPUT_FILE is no regular file"
fi
present=()
if [ -f "$INPUT_FILE" ]; then read -r -d '' -a present <"$INPUT_FILE" || true; fi

# has KEY: whether the file holds it.
has() {
  local one
  for one in ${present[@]+"${present[@]}"}; do
    if [ "$one" = "$1" ]; then return; fi
  done
  return 1
}

new=()
for key in "${keys[@]}"; do
  if ! has "$key"; then new+=("$key"); fi
done
if [ ${#present[@]} -eq 0 ] || { [ ${#new[@]} -gt 0 ] && is_true replace "${INPUT_REPLACE:-false}"; }; then
  printf '%s\n' "${keys[@]}" >"$INPUT_FILE"
elif [ ${#new[@]} -gt 0 ]; then
  fail "$INPUT_FILE holds other keys, which clients trust, and not ${new[*]}: it stays as it is; if the cache's key was \
exchanged on purpose, set replace: true, or add the key by hand"
fi
INPUT_TOKEN=$token exec "$BASH" -p "$actions/shell/commit-file.sh" "$INPUT_FILE" "$INPUT_MESSAGE"
