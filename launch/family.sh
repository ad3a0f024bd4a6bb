#!/usr/bin/env bash
# Trains every model of the family with three seeds and prints the table of their test results.
# A run that is finished is not repeated: after an interruption give the same command again.
# usage: bash launch/family.sh demo|flickr8k|flickr30k|coco [--seeds=N] [-- --config.field=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
keep_compiled
data=${1:?usage: bash launch/family.sh demo|flickr8k|flickr30k|coco [--seeds=N]}
shift
variants=vse,vse_infinity,vsrn,tern,tern_distilled,teran,chan,scan_t2i,scan_i2t,saf,sgr,cmsei
run exec .venv/bin/python -m xmodal_jax.sweep --config="configs/$data.py" --variants="$variants" \
  --out="runs/$data-models" --split=test --seeds=3 "$@"
