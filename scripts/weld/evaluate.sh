#!/usr/bin/env bash
# k-NN evaluation of a V4 checkpoint: bash scripts/weld/evaluate.sh [CHECKPOINT] [evaluate.py flags]
# Without a checkpoint: the newest one below $OUTPUT (default runs/weld_supcon).
set -euo pipefail
cd "$(dirname "$0")/../.."
checkpoint="${1:-}"
if [[ -n "$checkpoint" && "$checkpoint" != --* ]]; then
    shift
else
    checkpoint="$(ls -t "${OUTPUT:-runs/weld_supcon}"/*/best_model.pth "${OUTPUT:-runs/weld_supcon}"/best_model.pth 2>/dev/null | head -n 1 || true)"
fi
if [[ -z "$checkpoint" ]]; then
    echo "evaluate.sh: no checkpoint given and none below ${OUTPUT:-runs/weld_supcon}; train with scripts/weld/train_supcon.py" >&2
    exit 2
fi
exec "${PYTHON:-python}" evaluate.py --checkpoint "$checkpoint" "$@"
