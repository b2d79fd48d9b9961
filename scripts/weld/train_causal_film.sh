#!/usr/bin/env bash
# Train Causal-FiLM. Every flag goes to train_causal_film.py; without any, Weights & Biases is on (offline without a
# login) under a time-stamped name. OUTPUT=DIR moves the results; DATA_PATH=DIR is the data (default: built-in welds).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
flags=(--output-dir "${OUTPUT:-runs/weld}/causal_film")
[ -n "${DATA_PATH:-}" ] && flags+=(--data-path "$DATA_PATH")
[ $# -eq 0 ] && flags+=(--wandb --wandb_name "causal_film_$(date +%Y%m%d_%H%M%S)")
exec "${PYTHON:-python}" "$root/train_causal_film.py" "${flags[@]}" "$@"
