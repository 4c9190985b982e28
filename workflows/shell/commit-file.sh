#!/usr/bin/env bash
# Commits one file as github-actions[bot], and pushes the commit to the branch that the workflow runs on. Whatever else
# changed in the checkout is left alone. Sets the outputs changed and commit.
#   commit-file.sh FILE MESSAGE       INPUT_TOKEN: may push to origin, where that is https
set -euo pipefail
# shellcheck source=workflows/shell/common.sh
. "$(dirname "$0")/common.sh"
file=$1 message=$2
tries=5

case $GITHUB_REF in
  refs/heads/*) branch=${GITHUB_REF#refs/heads/} ;;
  *)
    notice "$file is not committed: $GITHUB_REF is no branch"
    set_output changed false
    set_output commit "$(git rev-parse HEAD)"
    exit
    ;;
esac

export GIT_AUTHOR_NAME='github-actions[bot]' GIT_COMMITTER_NAME='github-actions[bot]'
export GIT_AUTHOR_EMAIL='41898282+github-actions[bot]@users.noreply.github.com'
export GIT_COMMITTER_EMAIL=$GIT_AUTHOR_EMAIL GIT_TERMINAL_PROMPT=0

# The token is asked for by git alone, at the moment it is needed: it is in no file and on no command line.
remote_git() {
  # shellcheck disable=SC2016 # the helper's own shell expands it
  git -c credential.helper= \
    -c credential.helper='!f() { echo username=x-access-token; echo "password=$INPUT_TOKEN"; }; f' "$@"
}

git add --intent-to-add -- "$file"
if git diff --quiet HEAD -- "$file"; then
  set_output changed false
  set_output commit "$(git rev-parse HEAD)"
  exit
fi
git commit --quiet --only --message "$message" -- "$file"

for ((try = 1; ; try++)); do
  if remote_git push --quiet origin "HEAD:refs/heads/$branch"; then break; fi
  if ((try == tries)); then
    fail "$file: $branch took no push in $tries tries; the job needs contents: write, and the branch must let it push"
  fi
  sleep "0.$RANDOM"
  # Somebody else was faster, or something is in the way; what git said stands above.
  remote_git fetch --quiet origin "refs/heads/$branch"
  if ! git rebase --quiet --autostash FETCH_HEAD; then
    git rebase --abort
    fail "$file was changed on $branch meanwhile, otherwise than here; the next run goes on from there"
  fi
done
set_output changed true
set_output commit "$(git rev-parse HEAD)"
