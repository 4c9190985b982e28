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
# compare, or ask for a password; nor in submodules, which have settings of their own. And it takes no folder of the
# checkout for a repository. No command here compares or merges files: drivers for that have names of their own.
forbid_git_programs
own_git() {
  env "${git_settings[@]}" git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.askPass= -c core.pager=cat -c push.gpgSign=false \
    -c push.recurseSubmodules=no -c fetch.recurseSubmodules=no -c submodule.recurse=false -c gc.auto=0 \
    -c maintenance.auto=false -c protocol.ext.allow=never -c safe.bareRepository=explicit -c credential.helper= "$@"
}

# The same, with the token for GitHub, and for nobody else.
#   remote_git URL COMMAND…
remote_git() {
  local url=$1
  shift
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

# blob_in COMMIT: the file's there, or nothing.
blob_in() { own_git rev-parse --quiet --verify "$1:$path" || true; }

# make_commit PARENT: the same as the parent, but for the file. Neither index nor files of the checkout change.
make_commit() {
  local GIT_INDEX_FILE=$git_dir/nixcache-oci-index tree
  export GIT_INDEX_FILE
  own_git read-tree "$1" &&
    own_git update-index --add --cacheinfo "$mode,$blob,$path" &&
    tree=$(own_git write-tree) &&
    rm -f -- "$GIT_INDEX_FILE" &&
    own_git commit-tree "$tree" -p "$1" -m "$message"
}

git_dir=$(own_git rev-parse --absolute-git-dir)
path=$(own_git ls-files -z --full-name --cached --others -- "$file" | tr -d '\000')
[ -n "$path" ] || fail "$file: not in the checkout"
blob=$(own_git hash-object -w --no-filters -- "$file")
parent=$(head_commit)
before=$(blob_in HEAD)
if [ "$blob" = "$before" ]; then
  set_output changed false
  set_output commit "$parent"
  exit
fi
mode=$(own_git ls-tree --full-tree HEAD -- "$path" | cut -d ' ' -f 1)
mode=${mode:-100644}
commit=$(make_commit "$parent")
# The checkout is at it, too, and whatever else changed there stays as it is.
guard own_git update-ref HEAD "$commit"
guard own_git update-index --add --cacheinfo "$mode,$blob,$path"

# By their addresses: a remote's settings name programs as well.
push_url=$(own_git remote get-url --push origin)
fetch_url=$(own_git remote get-url origin)
for ((try = 1; ; try++)); do
  if guard remote_git "$push_url" push --quiet "$push_url" "$commit:refs/heads/$branch"; then break; fi
  if ((try == tries)); then
    fail "$file: $branch took no push in $tries tries; the job needs contents: write, and the branch must let it push"
  fi
  sleep "0.$RANDOM"
  # Somebody else was faster, or something is in the way; what git said stands above.
  guard remote_git "$fetch_url" fetch --quiet "$fetch_url" "refs/heads/$branch"
  parent=$(own_git rev-parse FETCH_HEAD)
  theirs=$(blob_in "$parent")
  if [ "$theirs" = "$blob" ]; then
    commit=$parent
    break
  fi
  if [ "$theirs" != "$before" ]; then
    fail "$file was changed on $branch meanwhile, otherwise than here; the next run goes on from there"
  fi
  commit=$(make_commit "$parent")
done
set_output changed true
set_output commit "$commit"
