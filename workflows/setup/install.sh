#!/usr/bin/env bash
# Installs the program out of this action's own checkout, and the dependencies that the lock beside this file names:
# checked by their hashes, and wheels only, so that nothing is compiled and no foreign set-up script runs.
#
# Nothing here runs in the job's checkout, and every Python is isolated: otherwise a venv.py, pip.py or aiohttp.py that
# lies there, or where PYTHONPATH leads, would be imported instead of the real one.
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/../shell/common.sh"
folder=$RUNNER_TEMP/nixcache-oci

# What pip needs to reach an index. The lock's hashes say what it may install from there; settings that say where to,
# or with which Python, are the job's own.
keep_harmless
keep LD_LIBRARY_PATH PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST PIP_CERT PIP_CLIENT_CERT PIP_PROXY
keep PIP_CACHE_DIR PIP_DEFAULT_TIMEOUT PIP_RETRIES PIP_FIND_LINKS
clean() { env -i "${kept[@]}" "$@"; }

rm -rf "$folder"
mkdir -p "$folder/source" "$folder/bin"
cd "$folder"

find_python() {
  local candidate
  for candidate in python3 python3.14 python3.13 python3.12 python3.11; do
    if clean "$candidate" -I -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail 'no Python of 3.11 or newer with its venv module is on PATH: use actions/setup-python before this action'
}

python=$(find_python)
clean "$python" -I -m venv "$folder/venv"
pip=("$folder/venv/bin/python" -I -m pip --quiet --disable-pip-version-check install --no-compile)
guard clean "${pip[@]}" --require-hashes --only-binary :all: -r "$actions/setup/requirements.txt"
# A copy, for a build leaves files behind, and the checkout may be the repository that is worked on.
(cd "$actions/.." && cp -R LICENSE README.md pyproject.toml nixcache_oci "$folder/source/")
guard clean "${pip[@]}" --no-index --no-deps --no-build-isolation "$folder/source"
rm -rf "$folder/source"
# A folder of its own, so that the job's own python and pip stay what they are; and isolated, wherever it is called.
cat >"$folder/bin/nixcache-oci" <<'END'
#!/bin/sh
exec "${0%/*}/../venv/bin/python" -I -m nixcache_oci "$@"
END
chmod 755 "$folder/bin/nixcache-oci"
version=$(clean "$folder/bin/nixcache-oci" --version)
printf '%s\n' "$folder/bin" >>"$GITHUB_PATH"
printf '%s\n' "$version"
set_output version "${version#nixcache-oci }"
