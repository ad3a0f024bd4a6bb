#!/usr/bin/env bash
# Compares the models that launch/family.sh has trained, as means over the three seeds with spread and
# 95 % intervals; all tests go to runs/DATA-models/comparison. SCAN's two directions, and TERAN with
# CHAN, are also evaluated together: an ensemble for each seed, in rows of their own.
# usage: bash launch/compare.sh demo|flickr8k|flickr30k|coco
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:?usage: bash launch/compare.sh demo|flickr8k|flickr30k|coco}
runs=runs/$data-models

together() { # ENSEMBLE RUN RUN [--standardize]; what is there is not made again
  local file=$runs/ensembles/$1/test.json
  shift
  [ -f "$file" ] || .venv/bin/python -m xmodal_jax.ensemble "$@" --split=test --out="$file" >&2
}

for seed in seed0 seed1 seed2; do
  together "scan_t2i+scan_i2t/$seed" "$runs/scan_t2i/$seed" "$runs/scan_i2t/$seed"
  # One sums over words and the other gives a mean.
  together "teran+chan/$seed" "$runs/teran/$seed" "$runs/chan/$seed" --standardize
done
models=(vse vse_infinity vsrn tern tern_distilled teran chan scan_t2i scan_i2t saf sgr cmsei)
shopt -s nullglob
reports=()
for model in "${models[@]}"; do
  reports+=("$runs/$model"/seed?/report_test_full{,_rerank*})
done
exec .venv/bin/python -m xmodal_jax.report compare --seeds --markdown --out="$runs/comparison" \
  --figures=i2t/r1,t2i/r1,t2i/ndcg_rouge,rsum \
  "${reports[@]}" "$runs"/ensembles/*/seed?/test_report
