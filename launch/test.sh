#!/usr/bin/env bash
# Installs, then runs the tests: a file of them to each of up to four processes, one more than cores,
# as some tests wait for others' programs. Those marked slow repeat on a larger model or on more
# processes what another one tests: -m "" runs them, too.
# usage: bash launch/test.sh [pytest arguments], e.g. -n 0 for one process, -k sweep for some tests
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
run bash launch/install.sh test
processes=$(($(nproc) < 4 ? $(nproc) + 1 : 4))
run .venv/bin/python -m pytest -q --numprocesses="$processes" --dist=loadfile \
  --no-loadscope-reorder -m "not slow" "$@" tests
