#!/usr/bin/env bash
# Installs, then trains on this machine: on CPUs, NVIDIA GPUs, or the TPUs of a single host.
# usage: bash launch/local.sh cpu|cuda|cuda12|tpu [--devices=N] --config=FILE [flags of xmodal_jax.main]
#   --devices=N   with cpu: N fake devices, to try a mesh: --devices=8 --config.mesh.model=2
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
extra="${1:-}"
case "$extra" in
  # Named, so that a GPU or TPU which can't be used is an error and not a slow run on the CPU; with
  # cpu as a second choice JAX would take it silently where CUDA is missing.
  cpu) platform=cpu ;;
  cuda | cuda12) platform=cuda ;;
  tpu) platform=tpu,cpu ;;
  *)
    print_usage
    fail "what to train on is missing: cpu, cuda, cuda12 or tpu"
    ;;
esac
shift
flags=() devices=
for flag in "$@"; do
  case "$flag" in
    --devices=*) devices="${flag#--devices=}" ;;
    *) flags+=("$flag") ;;
  esac
done
[ ${#flags[@]} -gt 0 ] || fail "--config=FILE is missing, e.g. --config=configs/demo.py"

settings=(JAX_PLATFORMS="$platform")
settings+=(JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/xmodal_jax/compiled}")
if [ -n "$devices" ]; then
  [ "$extra" = cpu ] || fail "--devices=$devices is for cpu; $extra has the devices that are there"
  settings+=(XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices")
fi
run bash launch/install.sh "$extra"
run exec env "${settings[@]}" .venv/bin/python -m xmodal_jax.main "${flags[@]}"
