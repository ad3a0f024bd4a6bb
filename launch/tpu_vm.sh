#!/usr/bin/env bash
# Trains on a Cloud TPU slice, on all of its workers (hosts).
# usage: bash launch/tpu_vm.sh create|status|setup|run|logs|stop|delete [flags of xmodal_jax.main]
#   create   request the slice    status   whether it is there, and whether it trains
#   setup    send the last commit to all workers and install it; again after each change
#   run      train in the background, e.g. run --config=configs/coco.py --workdir=/bucket/runs/coco
#   logs     follow the log of worker 0 (Ctrl-C ends only that); WORKER=N: of another
#   stop     save a checkpoint and end; `run` with the same flags continues
#   delete   give the slice back, with all that is on its disks
# Settings, from the environment:
#   PROJECT, ZONE                no default; ZONE has to offer the accelerator
#   NAME=xmodal                  of the slice, and of its place in the queue
#   ACCELERATOR=v5litepod-16     v5litepod-N, v6e-N: N chips; v5p-N: N cores, two a chip
#   RUNTIME=                     software version; empty: the accelerator's
#   QUEUED=1                     0: ask for the slice at once, without the queue
#   SPOT=0                       1: cheaper, and taken away at any time
#   BUCKET=                      bucket mounted at /bucket on all workers: a workdir for several hosts
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
command="${1:-}"
case "$command" in
  create | status | setup | run | logs | stop | delete) shift ;;
  *)
    print_usage
    fail "command ${command:-} is not known: create, status, setup, run, logs, stop or delete"
    ;;
esac
PROJECT="${PROJECT:-}" ZONE="${ZONE:-}" NAME="${NAME:-xmodal}" WORKER="${WORKER:-0}"
ACCELERATOR="${ACCELERATOR:-v5litepod-16}" RUNTIME="${RUNTIME:-}"
QUEUED="${QUEUED:-1}" SPOT="${SPOT:-0}" BUCKET="${BUCKET:-}"
[ -n "$PROJECT" ] || fail "PROJECT is not set: PROJECT=ID of your Google Cloud project"
[ -n "$ZONE" ] || fail "ZONE is not set, e.g. ZONE=us-west4-a"
where=(--project="$PROJECT" --zone="$ZONE")

runtime() {
  case "$ACCELERATOR" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) fail "the runtime of ACCELERATOR=$ACCELERATOR is not known; set RUNTIME" ;;
  esac
}

# on WORKER COMMAND [ARGUMENT ...]: runs it there, in the checkout
on() {
  local worker="$1"
  shift
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker="$worker" \
    --command="cd xmodal_jax && $(quoted "$@")"
}

create() {
  local version options=()
  version="${RUNTIME:-$(runtime)}"
  if [ "$SPOT" = 1 ]; then options+=(--spot); fi
  if [ "$QUEUED" = 1 ]; then
    run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id="$NAME" \
      --accelerator-type="$ACCELERATOR" --runtime-version="$version" ${options[@]+"${options[@]}"}
  else
    run gcloud compute tpus tpu-vm create "$NAME" "${where[@]}" \
      --accelerator-type="$ACCELERATOR" --version="$version" ${options[@]+"${options[@]}"}
  fi
}

status() {
  if [ "$QUEUED" = 1 ]; then
    run gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format="value(state.state)"
  fi
  run gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format="value(state)"
  on all bash launch/tpu_worker.sh status
}

setup() {
  local archive=/tmp/xmodal_jax-$NAME.tar.gz
  run git diff --quiet HEAD || say "warning: changes that are not committed are not sent"
  run git archive --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$NAME:xmodal_jax.tar.gz" "${where[@]}" --worker=all
  run gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all \
    --command="mkdir -p xmodal_jax && tar -xzf xmodal_jax.tar.gz -C xmodal_jax"
  on all env BUCKET="$BUCKET" bash launch/tpu_worker.sh setup
}

start() {
  workdir_of "$@" >/dev/null
  # Asked of all before any is started: a worker alone would wait for the others in vain.
  on all bash launch/tpu_worker.sh idle
  on all env BUCKET="$BUCKET" bash launch/tpu_worker.sh start "$@"
}

delete() {
  if [ "$QUEUED" = 1 ]; then
    run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force
  else
    run gcloud compute tpus tpu-vm delete "$NAME" "${where[@]}"
  fi
}

case "$command" in
  run) start "$@" ;;
  logs) on "$WORKER" tail --lines=100 -F ../xmodal_jax.log ;;
  stop) on all bash launch/tpu_worker.sh stop ;;
  *) "$command" ;;
esac
