#!/usr/bin/env bash
# What launch/tpu_vm.sh does on every worker of a slice; needs no call by hand.
# usage: bash launch/tpu_worker.sh setup|start|stop|status|idle [flags of xmodal_jax.main]
#   BUCKET=           bucket mounted at /bucket; none: nothing is mounted
#   GRACE=300         seconds that stop waits for the checkpoint
#   STATE=$HOME       where xmodal_jax.log, .lock and .pid are
#   PYTHON=           Python 3.11 or newer; empty: the system's, or one that uv brings
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
BUCKET="${BUCKET:-}" GRACE="${GRACE:-300}" STATE="${STATE:-$HOME}" PYTHON="${PYTHON:-}"
log="$STATE/xmodal_jax.log" lock="$STATE/xmodal_jax.lock" pid="$STATE/xmodal_jax.pid"

# The training holds the lock as long as it lives, however it ends: no stale file can block a run.
is_idle() {
  flock --nonblock "$lock" true
}

new_enough() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

setup() {
  if [ -z "$PYTHON" ] && { [ "${DRY_RUN:-0}" = 1 ] || ! new_enough python3; }; then
    # The images of TPU VMs are Ubuntu 22.04 with Python 3.10.
    run python3 -m pip install --quiet --user uv
    run python3 -m uv python install 3.12
    PYTHON=python3.12
    if [ "${DRY_RUN:-0}" != 1 ]; then PYTHON="$(python3 -m uv python find 3.12)"; fi
  fi
  run env PYTHON="$PYTHON" bash launch/install.sh tpu
  if [ -n "$BUCKET" ]; then
    if ! command -v gcsfuse >/dev/null || [ "${DRY_RUN:-0}" = 1 ]; then install_gcsfuse; fi
    mount_bucket
  fi
}

install_gcsfuse() {
  local packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  local release=jammy
  if [ "${DRY_RUN:-0}" != 1 ]; then release="$(lsb_release --codename --short)"; fi
  local source="deb [signed-by=$key] $packages gcsfuse-$release main"
  run sudo curl --fail --silent --show-error --output "$key" "$packages/doc/apt-key.gpg"
  run sudo bash -c "echo '$source' >/etc/apt/sources.list.d/gcsfuse.list"
  run sudo apt-get update --quiet
  run sudo apt-get install --quiet --yes gcsfuse
}

# Without caches of names, because each worker has to see at once what the others wrote; renaming
# directories, which completes a checkpoint, is off by default in buckets without folders.
mount_bucket() {
  if [ -z "$BUCKET" ] || { [ "${DRY_RUN:-0}" != 1 ] && mountpoint --quiet /bucket; }; then return; fi
  run sudo install --directory --owner="$(id -un)" /bucket
  run gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    --rename-dir-limit=200000 "$BUCKET" /bucket
}

start() {
  local workdir
  workdir="$(workdir_of "$@")"
  idle
  mount_bucket
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$workdir/compiled}"
  # With a session of its own it outlives the connection; exec keeps the number of the process.
  local command=(setsid flock --nonblock --no-fork "$lock"
    .venv/bin/python -m xmodal_jax.main --distributed "$@")
  if [ "${DRY_RUN:-0}" = 1 ]; then
    run env JAX_COMPILATION_CACHE_DIR="$JAX_COMPILATION_CACHE_DIR" "${command[@]}"
    return
  fi
  echo "--- $(date --utc --iso-8601=seconds) $*" >>"$log"
  "${command[@]}" >>"$log" 2>&1 </dev/null &
  echo $! >"$pid"
  sleep 2
  if ! kill -0 "$(cat "$pid")" 2>/dev/null && ! wait "$(cat "$pid")"; then
    tail --lines=20 "$log" >&2
    fail "the run ended at once on $(hostname)"
  fi
  echo "started on $(hostname); log: $log"
}

stop() {
  if [ "${DRY_RUN:-0}" != 1 ] && is_idle; then
    say "nothing runs on $(hostname)"
    return
  fi
  run kill -TERM "$(cat "$pid" 2>/dev/null || echo PID)"
  run flock --timeout "$GRACE" "$lock" true ||
    fail "still saving on $(hostname) after $GRACE s; wait, or GRACE=SECONDS, before it is deleted"
  say "stopped on $(hostname)"
}

status() {
  if run flock --nonblock "$lock" true; then
    say "$(hostname): idle"
  else
    say "$(hostname): running"
  fi
  if [ -f "$log" ]; then run tail --lines=1 "$log"; fi
}

idle() {
  run flock --nonblock "$lock" true || fail "a run is under way on $(hostname); stop it first"
}

action="${1:-}"
case "$action" in
  setup | start | stop | status | idle) "$@" ;;
  *)
    print_usage
    fail "command ${action:-} is not known: setup, start, stop, status or idle"
    ;;
esac
