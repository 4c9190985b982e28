# shellcheck shell=bash
# What the actions' scripts share. They run under bash 3.2 as well, which is macOS's own.
#
# A checkout may be a stranger's: no program that is started here is looked for in it, nor are its settings obeyed.

set -f # no word of ours is a pattern
unset CDPATH BASH_ENV ENV
IFS=$' \t\n'
# shellcheck disable=SC2086 # names without spaces
unset ${!PYTHON@}

# escape TEXT: sets escaped to it as the value of a workflow command; control characters are shown.
escape() {
  local LC_ALL=C text=$1 letter code i old='##[' broken='## ['
  escaped=
  for ((i = 0; i < ${#text}; i++)); do
    letter=${text:i:1}
    case $letter in
      %) escaped+=%25 ;;
      $'\r' | $'\n') escaped+=' ' ;;
      [[:cntrl:]])
        printf -v code '\\x%02x' "'$letter"
        escaped+=$code
        ;;
      $'\302')
        # With the next byte, it may be a control character beyond ASCII.
        case ${text:i+1:1} in
          [$'\200'-$'\237']) escaped+='?' i=$((i + 1)) ;;
          *) escaped+=$letter ;;
        esac
        ;;
      *) escaped+=$letter ;;
    esac
  done
  escaped=${escaped//"$old"/$broken}
}

# tell KIND TEXT: one line that GitHub shows beside the run; a second one could be a command of its own.
tell() {
  local escaped
  escape "$2"
  printf '::%s::%s\n' "$1" "$escaped" >&2
}

notice() { tell notice "$1"; }

# Ends the step.
fail() {
  tell error "$1"
  exit 1
}

# show_text WORD: passes lines on as text, for guard. For GitHub, a carriage return ends a line, too.
show_text() {
  LC_ALL=C tr '\r' '\n' | LC_ALL=C tr -d '\000-\010\013\014\016-\032\034-\037\177' |
    LC_ALL=C sed -e 's/##\[/## [/g' -e "s/$1/.../g" -e $'s/\033/\\\\x1b/g' -e $'s/\302[\200-\237]/?/g'
}

# enclose WORD: passes lines on, if there are any, between stop-commands and the word that ends it.
enclose() {
  local line is_begun=false
  while IFS= read -r line || [ -n "$line" ]; do
    if ! $is_begun; then printf '::stop-commands::%s\n' "$1"; fi
    is_begun=true
    printf '%s\n' "$line"
  done
  if $is_begun; then printf '::%s::\n' "$1"; fi
}

# guard COMMAND…: runs it, and has GitHub take nothing that it prints for a command.
guard() {
  local word status=0
  word=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  "$@" 2>&1 | show_text "$word" | enclose "$word" >&2 || status=${PIPESTATUS[0]}
  return "$status"
}

# is_inside FOLDER OTHER: whether a folder is another, or lies in it.
is_inside() {
  case $1/ in
    "${2%/}"/*) return 0 ;;
    *) return 1 ;;
  esac
}

# keep_outside LIST: sets outside to those folders of it, joined by colons, that are absolute and in no checkout.
# An action that itself comes out of the checkout, as by `uses: ./workflows/…`, has nothing to fear from there.
keep_outside() {
  local rest=$1: entry real checkout
  outside=
  while [ -n "$rest" ]; do
    entry=${rest%%:*} rest=${rest#*:}
    case $entry in /*) ;; *) continue ;; esac
    real=$(cd -P -- "$entry" 2>/dev/null && pwd -P) || real=$entry
    for checkout in "${checkouts[@]}"; do
      if is_inside "$real" "$checkout" && ! is_inside "$actions" "$checkout"; then continue 2; fi
    done
    outside+=${outside:+:}$entry
  done
}

actions=$(cd -P -- "${BASH_SOURCE[0]%/*}/.." && pwd -P)
checkouts=("$(pwd -P)")
if [ -d "${GITHUB_WORKSPACE-}" ]; then checkouts+=("$(cd -P -- "$GITHUB_WORKSPACE" && pwd -P)"); fi
# keep_paths_outside NAME…: leaves of what these variables list only what is in no checkout.
keep_paths_outside() {
  local name
  for name; do
    if [ -z "${!name+set}" ]; then continue; fi
    keep_outside "${!name}"
    unset "$name"
    if [ -n "$outside" ]; then export "$name=$outside"; fi
  done
}

# Where programs, libraries, and the settings of pip, git and Nix are looked for.
keep_paths_outside PATH LD_LIBRARY_PATH XDG_CONFIG_HOME XDG_CONFIG_DIRS XDG_DATA_HOME

# keep NAME…: adds NAME=VALUE of those that are set to the list kept.
kept=()
keep() {
  local name
  for name; do
    if [ -n "${!name+set}" ]; then kept+=("$name=${!name}"); fi
  done
}

# is_secret_name NAME
is_secret_name() {
  case $1 in
    *[Kk][Ee][Yy]* | *[Tt][Oo][Kk][Ee][Nn]* | *[Ss][Ee][Cc][Rr][Ee][Tt]*) return 0 ;;
    *[Pp][Aa][Ss][Ss][Ww]* | *[Cc][Rr][Ee][Dd][Ee][Nn][Tt][Ii][Aa][Ll]*) return 0 ;;
    *) return 1 ;;
  esac
}

# keep_unless_secret NAME…
keep_unless_secret() {
  local name
  for name; do
    if ! is_secret_name "$name"; then keep "$name"; fi
  done
}

# keep_harmless: begins the list kept with what any program may see; clients/local_store/child_environment.py has the same.
# Settings in the checkout are a stranger's, also where it is the home folder: without HOME, programs ask the system for it.
keep_harmless() {
  kept=()
  keep_paths_outside HOME NIX_CONF_DIR NIX_USER_CONF_FILES
  keep PATH HOME USER LOGNAME LANG LANGUAGE TERM TMPDIR NO_COLOR
  keep SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE GIT_SSL_CAINFO
  keep http_proxy https_proxy ftp_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY FTP_PROXY ALL_PROXY NO_PROXY
  keep_unless_secret "${!LC_@}" "${!NIX_@}" "${!NIXPKGS_ALLOW_@}" "${!XDG_@}"
}

# add_git_setting NAME VALUE: adds what has git take a setting to the list git_settings, as variables of its environment.
add_git_setting() {
  git_settings+=("GIT_CONFIG_KEY_$git_count=$1" "GIT_CONFIG_VALUE_$git_count=$2")
  git_count=$((git_count + 1))
}

# forbid_git_programs: begins the list git_settings with what keeps git from running programs that the settings of the
# checkout name as it looks at files. Filters have names of their own.
forbid_git_programs() {
  local name
  git_settings=() git_count=0
  add_git_setting core.fsmonitor false
  add_git_setting core.hooksPath /dev/null
  while IFS= read -r -d '' name; do
    case $name in
      *.required) add_git_setting "$name" false ;;
      *) add_git_setting "$name" '' ;;
    esac
  done < <(git config --null --name-only --get-regexp '^filter\.' || true)
  git_settings+=("GIT_CONFIG_COUNT=$git_count")
}

# hide_token ARGUMENT…: begins the script anew with these, without INPUT_TOKEN: what a shell was started with can be read
# in /proc for as long as it runs. The token comes by a descriptor, and becomes the variable token, of this shell alone.
hide_token() {
  if [ -z "${NIXCACHE_TOKEN_HANDED-}" ]; then
    token=${INPUT_TOKEN-}
    unset INPUT_TOKEN
    keep_harmless
    keep "${!INPUT_@}" LD_LIBRARY_PATH SSH_AUTH_SOCK
    keep_unless_secret "${!GITHUB_@}" "${!RUNNER_@}"
    exec env -i "${kept[@]}" NIXCACHE_TOKEN_HANDED=true "$BASH" -p "$0" "$@" 9<<<"$token"
  fi
  unset NIXCACHE_TOKEN_HANDED
  # shellcheck disable=SC2034 # for the script
  IFS= read -r token <&9
  exec 9<&-
}

set_output() { printf '%s=%s\n' "$1" "$2" >>"$GITHUB_OUTPUT"; }

# is_blank TEXT: whether nothing is in it that could be a name, a key or a token.
is_blank() {
  case $1 in
    *[A-Za-z0-9]*) return 1 ;;
    *) return 0 ;;
  esac
}

# is_true INPUT VALUE
is_true() {
  case $2 in
    true) return 0 ;;
    false) return 1 ;;
    *) fail "input $1: expected true or false, got '$2'" ;;
  esac
}

# set_up NAME VALUE: an input that is empty leaves the variable as the job has it.
set_up() {
  if [ -n "$2" ]; then export "$1=$2"; fi
}

# use_token: a token that is not GitHub's own is one for the registry, whichever that is; it may be user:password.
use_token() {
  case ${GITHUB_TOKEN-} in
    ghs_* | ghp_* | gho_* | ghu_* | ghr_* | github_pat_*) ;;
    *)
      if ! is_blank "${GITHUB_TOKEN-}"; then export NIXCACHE_TOKEN=$GITHUB_TOKEN; fi
      unset GITHUB_TOKEN
      ;;
  esac
}

# What the program is given; every value hangs on its flag, so that none is taken for a flag itself.
arguments=()

# add_switch FLAG VALUE
add_switch() {
  if is_true "${1#--}" "$2"; then arguments+=("$1"); fi
}

# add_value FLAG VALUE: nothing where it is empty.
add_value() {
  if [ -n "$2" ]; then arguments+=("$1=$2"); fi
}

# add_lines FLAG TEXT: the flag once for every line that is not empty.
add_lines() {
  local line
  while read -r line; do add_value "$1" "$line"; done <<<"$2"
}

# become_program VERB: no shell stays behind, which would keep what the step was started with.
become_program() {
  exec nixcache-oci "$1" ${arguments[@]+"${arguments[@]}"}
}

require_program() {
  command -v nixcache-oci >/dev/null ||
    fail 'nixcache-oci is not on PATH: use the action workflows/setup of nixcache-oci before this one'
}
