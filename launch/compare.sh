#!/usr/bin/env bash
# Compares the models that launch/family.sh has trained: means over the seeds, spread, 95 % intervals;
# all tests go to runs/DATA-models/comparison. TERAN and CHAN are also evaluated together: an ensemble
# for each seed, in a row of its own.
# usage: bash launch/compare.sh demo|flickr8k|flickr30k|coco
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
data=${1:?usage: bash launch/compare.sh demo|flickr8k|flickr30k|coco}
runs=runs/$data-models

for seed in seed0 seed1 seed2; do
  file=$runs/ensembles/teran+chan/$seed/test.json
  # Standardized, as one may sum over words where the other gives a mean.
  [ -f "$file" ] || run .venv/bin/python -m xmodal_jax.ensemble "$runs/teran/$seed" \
    "$runs/chan/$seed" --standardize --split=test --out="$file" >&2
done
models=(vse vse_infinity vsrn tern tern_distilled teran chan scan_t2i scan_i2t saf sgr cmsei)
shopt -s nullglob
reports=()
for model in "${models[@]}"; do
  reports+=("$runs/$model"/seed?/report_test_full{,_rerank*})
done
run .venv/bin/python -m xmodal_jax.report compare --seeds --markdown --out="$runs/comparison" \
  --figures=i2t/r1,t2i/r1,t2i/ndcg_rouge,rsum \
  "${reports[@]}" "$runs"/ensembles/*/seed?/test_report
