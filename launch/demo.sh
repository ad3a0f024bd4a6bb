#!/usr/bin/env bash
# Installs, then trains and evaluates a small TERAN and its mean-pooled baseline on drawn scenes.
# usage: bash launch/demo.sh                 (about 3 minutes on 2 cores, after installation)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
keep_compiled
run bash launch/install.sh
run .venv/bin/python -m xmodal_jax.main --config=configs/demo.py:mean_pooled
run .venv/bin/python -m xmodal_jax.main --config=configs/demo.py
run .venv/bin/python -m xmodal_jax.results runs/demo-mean_pooled runs/demo
