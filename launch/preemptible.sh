#!/usr/bin/env bash
# Runs a command that saves and ends with 0 when it is told to stop (SIGTERM), and ends with 143
# instead, so that a scheduler takes it for unfinished and starts it again.
# usage: bash launch/preemptible.sh [--forward] COMMAND [ARGUMENT ...]
#   --forward   pass SIGTERM on: in a container only the first process gets it, under Slurm all do
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
forward=
if [ "${1:-}" = --forward ]; then
  forward=1
  shift
fi
[ $# -gt 0 ] || fail "COMMAND is missing; usage: bash launch/preemptible.sh [--forward] COMMAND"
if [ "${DRY_RUN:-0}" = 1 ]; then
  run "$@"
  exit
fi

told='' child=''
stop() {
  told=1
  if [ -n "$forward" ] && [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; fi
}
trap stop TERM
"$@" &
child=$!
if [ -n "$told" ]; then stop; fi
code=0
wait_to_the_end "$child" || code=$?
if [ -n "$told" ] && [ "$code" = 0 ]; then code=143; fi
exit "$code"
