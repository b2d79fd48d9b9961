#!/usr/bin/env bash
# Measure every checkpoint of a sweep: run_gate_all.sh CHECKPOINT_DIR BRANCH [flags of run_gate_experiment.py]
set -euo pipefail
if [ $# -lt 2 ]; then
  echo "usage: $0 CHECKPOINT_DIR BRANCH [flags of run_gate_experiment.py]" >&2
  exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
checkpoints="$1"
branch="$2"
shift 2
exec "${PYTHON:-python}" "$here/run_gate_experiment.py" --checkpoint-dir "$checkpoints" --branch "$branch" "$@"
