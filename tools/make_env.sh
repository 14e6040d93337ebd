#!/usr/bin/env bash
# Create .venv with the tested versions: tools/make_env.sh PYTHON. `make env` runs this.
set -euo pipefail
python=${1:-}
test -n "$python" || { echo "No Python 3.10 to 3.13 found. Name one: make PYTHON=/path/to/python3" >&2; exit 1; }
"$python" -c 'import ensurepip, venv' 2>/dev/null || { echo "$python cannot create virtual environments." \
    "On Debian or Ubuntu its package python3-venv is missing; environment.yml is the way with conda." >&2; exit 1; }
"$python" -m venv .venv
pip() { .venv/bin/python -m pip install --disable-pip-version-check -q --no-compile -c constraints.txt "$@"; }
pip uv
# uv takes a fraction of pip's time; pip does it where uv can't, say behind an index that only pip is told of.
.venv/bin/uv pip install -q --python .venv/bin/python -c constraints.txt -e ".[book,test]" || pip -e ".[book,test]"
