#!/usr/bin/env bash
# Trains CMSEI-R without each of its parts, three seeds each, and prints the table of test results.
# A run that is finished is not repeated: after an interruption give the same command again.
# usage: bash launch/ablation.sh demo|flickr8k|flickr30k|coco [--seeds=N] [-- --config.field=value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
keep_compiled
data=${1:?usage: bash launch/ablation.sh demo|flickr8k|flickr30k|coco [--seeds=N]}
shift
variants=cmsei,cmsei_no_spatial,cmsei_no_semantic,cmsei_no_graphs,cmsei_no_interaction
variants+=,cmsei_no_object_sentence,cmsei_no_word_image
run exec .venv/bin/python -m xmodal_jax.sweep --config="configs/$data.py" --variants="$variants" \
  --out="runs/$data-models" --split=test --seeds=3 "$@"
