#!/usr/bin/env bash
# Train and test over several seeds: SEEDS="0 1 2" K_SHOTS="0 4" TRAIN_FLAGS="--dataset visa --data-path VisA" schedule.sh
# A killed schedule goes on where it stopped: a finished run is not trained again.
# Flags after the command go to evaluate.py. Results: $OUTPUT/seed_N/k_N/.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-python}"
output="${OUTPUT:-result/sowa}"
for seed in ${SEEDS:-0 1 2}; do
  run="$output/seed_$seed/run"
  # shellcheck disable=SC2086
  "$python" "$root/scripts/sowa/train_sowa.py" --seed "$seed" --output-dir "$run" ${TRAIN_FLAGS:-}
  CHECKPOINT="$run/checkpoint.pt" OUTPUT="$output/seed_$seed" K_SHOTS="${K_SHOTS:-0 4}" \
    bash "$root/scripts/sowa/infer_auto.sh" "$@"
done
