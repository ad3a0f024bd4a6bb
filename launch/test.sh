#!/usr/bin/env bash
# Installs, then runs the tests: a file of them to each of up to four processes at a time.
# usage: bash launch/test.sh [pytest arguments], e.g. -n 0 for one process, -k sweep for some tests
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
run bash launch/install.sh test
run .venv/bin/python -m pytest -q --numprocesses=auto --maxprocesses=4 --dist=loadfile \
  --no-loadscope-reorder "$@" tests
