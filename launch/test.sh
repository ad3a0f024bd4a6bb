#!/usr/bin/env bash
# Installs, then runs the tests.
# usage: bash launch/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
bash launch/install.sh test
.venv/bin/python -m pytest -q "$@" tests
