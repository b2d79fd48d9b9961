#!/usr/bin/env bash
# One checkpoint, one data set, several shots: K_SHOTS="0 1 2 4" CHECKPOINT=run/checkpoint.pt DATA_PATH=MVTec infer_auto.sh
# Without CHECKPOINT the newest run below runs/sowa is taken, and one is trained on the demo data if there is none.
# More flags are passed on to evaluate.py. Results: $OUTPUT/k_N/.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-python}"
checkpoint="${CHECKPOINT:-$(ls -t runs/sowa/*/checkpoint.pt 2>/dev/null | head -n 1 || true)}"
if [ -z "$checkpoint" ]; then
  "$python" "$root/scripts/sowa/train_sowa.py"
  checkpoint="$(ls -t runs/sowa/*/checkpoint.pt | head -n 1)"
fi
data=()
if [ -n "${DATA_PATH:-}" ]; then data=(--data-path "$DATA_PATH"); fi
for k in ${K_SHOTS:-0 1 2 4}; do
  echo "== $checkpoint, k=$k"
  "$python" "$root/evaluate.py" --checkpoint "$checkpoint" "${data[@]}" --k-shot "$k" \
    --output-dir "${OUTPUT:-result/sowa}/k_$k" "$@"
done
