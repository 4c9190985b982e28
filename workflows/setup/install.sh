#!/usr/bin/env bash
# Installs the program out of this action's own checkout, and the dependencies that the lock beside this file names:
# checked by their hashes, and wheels only, so that nothing is compiled and no foreign set-up script runs.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "$(dirname "$0")/../shell/common.sh"
here=$(cd "$(dirname "$0")" && pwd)
folder=$RUNNER_TEMP/nixcache-oci

find_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail 'no Python of 3.11 or newer with its venv module is on PATH: use actions/setup-python before this action'
}

python=$(find_python)
rm -rf "$folder"
mkdir -p "$folder/source" "$folder/bin"
"$python" -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check install --no-compile)
"${pip[@]}" --require-hashes --only-binary :all: -r "$here/requirements.txt"
# A copy, for a build leaves files behind, and the checkout may be the repository that is worked on.
(cd "$here/../.." && cp -R LICENSE README.md pyproject.toml nixcache_oci "$folder/source/")
"${pip[@]}" --no-index --no-deps --no-build-isolation "$folder/source"
rm -rf "$folder/source"
# A folder of its own, so that the job's own python and pip stay what they are.
ln -s "$folder/venv/bin/nixcache-oci" "$folder/bin/nixcache-oci"
printf '%s\n' "$folder/bin" >>"$GITHUB_PATH"
version=$("$folder/bin/nixcache-oci" --version)
printf '%s\n' "$version"
set_output version "${version#nixcache-oci }"
