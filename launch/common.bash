# shellcheck shell=bash
# What the scripts of this directory share; they source it.
# usage: source launch/common.bash

# The words as a line that a shell reads as the same words.
quoted() {
  local word line=
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    line+="${line:+ }$word"
  done
  echo "$line"
}

# Runs a command; with DRY_RUN=1 prints it and runs nothing.
run() {
  if [ "${DRY_RUN:-0}" = 1 ]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Lets JAX keep what it compiles, for the next start; the variable may name another place.
keep_compiled() {
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/xmodal_jax/compiled}"
}

# Prints a message about what was done, hence not in a dry run.
say() {
  [ "${DRY_RUN:-0}" = 1 ] || echo "$@"
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# The comment at the head of a script, without its first line: what it is for, its usage, its settings.
print_usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
}

# The directory named by --workdir=DIR among the flags: all processes of a run share it.
workdir_of() {
  local flag
  for flag in "$@"; do
    case "$flag" in
      --workdir=?*)
        echo "${flag#--workdir=}"
        return
        ;;
    esac
  done
  fail "--workdir=DIR is missing: it has to lie on a file system that all processes share"
}

# Returns the exit code of a child process, however many trapped signals come before its end: each of
# them ends a `wait` with a code of its own, and bash keeps the child's for the last one.
wait_to_the_end() {
  while kill -0 "$1" 2>/dev/null; do
    wait "$1" || true
  done
  wait "$1"
}
