#!/usr/bin/env bash
# Installs, then trains and evaluates a small TERAN and its mean-pooled baseline on drawn scenes, and
# makes an index of the test scenes to be searched.
# usage: bash launch/demo.sh                 (about 3 minutes on 2 cores, after installation)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
keep_compiled
run bash launch/install.sh serve
run .venv/bin/python -m xmodal_jax.main --config=configs/demo.py:mean_pooled
run .venv/bin/python -m xmodal_jax.main --config=configs/demo.py
run .venv/bin/python -m xmodal_jax.results runs/demo-mean_pooled runs/demo
run .venv/bin/python -m xmodal_jax.main --workdir=runs/demo --mode=export
run .venv/bin/python -m data_pipeline.build synthetic --images=runs/demo/pictures --draw=test
run rm -rf runs/demo/index
run .venv/bin/python -m xmodal_jax.retrieval index runs/demo/index --model=runs/demo/export \
  --dataset=scenes --split=test --pictures=runs/demo/pictures
say "Search the 500 test scenes: .venv/bin/python -m xmodal_jax.retrieval serve runs/demo/index"
