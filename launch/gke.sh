#!/usr/bin/env bash
# Trains on GKE, on a TPU slice or on GPU nodes, as a JobSet that restarts after a preemption.
# usage: bash launch/gke.sh image|run|status|logs|delete tpu|gpu [flags of xmodal_jax.main]
#   image    build and push IMAGE from this directory
#   run      e.g. run tpu --config=configs/coco.py --workdir=/bucket/runs/coco
#   status   of the JobSet and its pods        logs   follow those of process 0
#   delete   save a checkpoint and end; `run` with the same flags continues
# Settings, from the environment:
#   NAME=xmodal                of the JobSet
#   IMAGE, BUCKET              no default; the bucket is mounted at /bucket
#   SERVICE_ACCOUNT=default    of Kubernetes; it may read and write the bucket
#   EXTRA=tpu | cuda           of setup.cfg, what the image is for; cuda12 for older drivers
#   ACCELERATOR=               tpu-v5-lite-podslice (default), tpu-v6e-slice, tpu-v5p-slice;
#                              nvidia-h100-80gb (default), nvidia-h200-141gb
#   TOPOLOGY=4x4               tpu: of the slice
#   CHIPS=4 | 8                chips or GPUs of a host
#   HOSTS=2                    gpu: nodes; with a TPU they follow from TOPOLOGY and CHIPS
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
command="${1:-}" kind="${2:-}"
case "$command $kind" in
  "image "* | "run "* | "status "* | "logs "* | "delete "*) ;;
  *)
    print_usage
    fail "command ${command:-} is not known: image, run, status, logs or delete"
    ;;
esac
NAME="${NAME:-xmodal}" IMAGE="${IMAGE:-}" BUCKET="${BUCKET:-}"
SERVICE_ACCOUNT="${SERVICE_ACCOUNT:-default}" TOPOLOGY="${TOPOLOGY:-4x4}"
case "$kind" in
  tpu)
    EXTRA="${EXTRA:-tpu}" ACCELERATOR="${ACCELERATOR:-tpu-v5-lite-podslice}" CHIPS="${CHIPS:-4}"
    [[ "$TOPOLOGY" =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || fail "TOPOLOGY=$TOPOLOGY is not like 4x4"
    chips=$((${TOPOLOGY//x/*}))
    [ "$((chips % CHIPS))" = 0 ] ||
      fail "CHIPS=$CHIPS of a host do not divide the $chips chips of TOPOLOGY=$TOPOLOGY"
    HOSTS=$((chips / CHIPS))
    ;;
  gpu)
    EXTRA="${EXTRA:-cuda}" ACCELERATOR="${ACCELERATOR:-nvidia-h100-80gb}" CHIPS="${CHIPS:-8}"
    HOSTS="${HOSTS:-2}"
    ;;
  *) fail "what to train on is missing: tpu or gpu" ;;
esac
shift 2

image() {
  [ -n "$IMAGE" ] || fail "IMAGE is not set, e.g. IMAGE=REGION-docker.pkg.dev/PROJECT/REPOSITORY/xmodal"
  run docker build --file=launch/Dockerfile --build-arg=EXTRA="$EXTRA" --tag="$IMAGE" .
  run docker push "$IMAGE"
}

# The flags as a JSON list, which is YAML too.
json_list() {
  local item list=
  for item in "$@"; do
    item="${item//\\/\\\\}"
    list+="${list:+, }\"${item//\"/\\\"}\""
  done
  echo "[$list]"
}

# shellcheck disable=SC2034  # FLAGS and WORKDIR are used by name, like the others
render() {
  local text name FLAGS WORKDIR
  WORKDIR="$(workdir_of "$@")"
  FLAGS="$(json_list "$@")"
  text="$(cat "launch/gke_${kind}_jobset.yaml")"
  for name in NAME IMAGE BUCKET SERVICE_ACCOUNT ACCELERATOR TOPOLOGY HOSTS CHIPS WORKDIR FLAGS; do
    text="${text//"\${$name}"/"${!name}"}"
  done
  echo "$text"
}

start() {
  local manifest
  [ -n "$IMAGE" ] || fail "IMAGE is not set: what \`image\` built and pushed"
  [ -n "$BUCKET" ] || fail "BUCKET is not set: the bucket for workdir and data, without gs://"
  manifest="$(render "$@")"
  # create, not apply: a JobSet of this name that is there already stays as it is.
  run kubectl create --filename=- <<<"$manifest"
  if [ "${DRY_RUN:-0}" = 1 ]; then echo "$manifest"; fi
}

pods=jobset.sigs.k8s.io/jobset-name="$NAME"
case "$command" in
  image) image ;;
  run) start "$@" ;;
  status)
    run kubectl get jobset "$NAME"
    run kubectl get pods --selector="$pods" --output=wide
    ;;
  logs) run kubectl logs --follow --tail=100 --container=train \
    --selector="$pods,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run kubectl delete jobset "$NAME" ;;
esac
