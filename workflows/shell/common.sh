# shellcheck shell=bash
# What the actions' scripts share. They run under bash 3.2 as well, which is macOS's own.

# tell KIND TEXT: one line that GitHub shows beside the run; a second one could be a command of its own.
tell() {
  local line=${2//$'\n'/ }
  printf '::%s::%s\n' "$1" "${line//$'\r'/ }" >&2
}

notice() { tell notice "$1"; }

# Ends the step.
fail() {
  tell error "$1"
  exit 1
}

set_output() { printf '%s=%s\n' "$1" "$2" >>"$GITHUB_OUTPUT"; }

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

# run_program VERB
run_program() {
  nixcache-oci "$1" ${arguments[@]+"${arguments[@]}"}
}

require_program() {
  command -v nixcache-oci >/dev/null ||
    fail 'nixcache-oci is not on PATH: use the action workflows/setup of nixcache-oci before this one'
}
