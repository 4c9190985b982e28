#!/usr/bin/env bash
# Commits one file as github-actions[bot], and pushes the commit to the branch that the workflow runs on. Whatever else
# changed in the checkout is left alone. Sets the outputs changed and commit.
#   commit-file.sh FILE MESSAGE       INPUT_TOKEN: may push to origin, where that is https
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "${BASH_SOURCE[0]%/*}/common.sh"
# The token is in no file, on no command line, and in no environment but that of the git that needs it.
hide_token "$@"
file=$1 message=$2
tries=5
ca_file=${GIT_SSL_CAINFO-}
# shellcheck disable=SC2086 # names without spaces
unset ${!GIT_@} SSH_ASKPASS
if [ -n "$ca_file" ]; then export GIT_SSL_CAINFO=$ca_file; fi
export GIT_AUTHOR_NAME='github-actions[bot]' GIT_COMMITTER_NAME='github-actions[bot]'
export GIT_AUTHOR_EMAIL='41898282+github-actions[bot]@users.noreply.github.com'
export GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL GIT_TERMINAL_PROMPT=0

# git that runs no program which the checkout's own settings name: neither hooks, nor what would watch files, sign,
# compare, or ask for a password; and that takes no folder of the checkout for a repository.
own_git() {
  git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.askPass= -c commit.gpgSign=false -c diff.external= \
    -c core.editor=true -c core.pager=cat -c safe.bareRepository=explicit -c credential.helper= "$@"
}

# The same, with the token for GitHub, and for nobody else.
remote_git() {
  local url
  url=$(own_git remote get-url --push origin)
  # Over ssh, git runs what the checkout's settings say, and needs no token.
  if [ "${url#https://}" = "$url" ]; then
    own_git "$@"
    return
  fi
  # shellcheck disable=SC2016 # the helper's own shell expands it
  INPUT_TOKEN=$token own_git -c "credential.${GITHUB_SERVER_URL:-https://github.com}.helper="'!f() {
    test "$1" = get || return 0; echo username=x-access-token; echo "password=$INPUT_TOKEN"; }; f' "$@"
}

head_commit() { own_git rev-parse HEAD; }

case $GITHUB_REF in
  refs/heads/*) branch=${GITHUB_REF#refs/heads/} ;;
  *)
    notice "$file is not committed: $GITHUB_REF is no branch"
    set_output changed false
    set_output commit "$(head_commit)"
    exit
    ;;
esac

guard own_git add --intent-to-add -- "$file"
if own_git diff --quiet --no-ext-diff --no-textconv HEAD -- "$file" >/dev/null 2>&1; then
  set_output changed false
  set_output commit "$(head_commit)"
  exit
fi
guard own_git commit --quiet --no-verify --only --message "$message" -- "$file"

for ((try = 1; ; try++)); do
  if guard remote_git push --quiet origin "HEAD:refs/heads/$branch"; then break; fi
  if ((try == tries)); then
    fail "$file: $branch took no push in $tries tries; the job needs contents: write, and the branch must let it push"
  fi
  sleep "0.$RANDOM"
  # Somebody else was faster, or something is in the way; what git said stands above.
  guard remote_git fetch --quiet origin "refs/heads/$branch"
  if ! guard own_git rebase --quiet --autostash FETCH_HEAD; then
    guard own_git rebase --abort
    fail "$file was changed on $branch meanwhile, otherwise than here; the next run goes on from there"
  fi
done
set_output changed true
set_output commit "$(head_commit)"
