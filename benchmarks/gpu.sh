#!/usr/bin/env bash
# On a GPU machine: the tests that need a GPU or the host, and all timings, into runs/gpu/gpu.json and gpu.md.
# Without a GPU the same at small size. Options: bash benchmarks/gpu.sh --help
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" WANDB_MODE=disabled
exec "${PYTHON:-python}" "$here/benchmarks/gpu.py" "$@"
