#!/usr/bin/env bash
# evaluate_causal_film.sh CHECKPOINT [flags of evaluate.py]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
checkpoint="${1:-${OUTPUT:-runs/weld}/causal_film/best_model.pth}"
[ $# -gt 0 ] && shift
exec "${PYTHON:-python}" "$root/evaluate.py" --checkpoint "$checkpoint" "$@"
