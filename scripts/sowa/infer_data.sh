#!/usr/bin/env bash
# One checkpoint on several data sets: DATA_PATHS="MVTec BTAD DAGM DTD" K_SHOT=4 CHECKPOINT=run/checkpoint.pt infer_data.sh
# Each folder is read by its meta.json if it has one, else as MVTec layout. Without DATA_PATHS: the data of the run.
# More flags are passed on to evaluate.py. Results: $OUTPUT/NAME/.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
output="${OUTPUT:-result/sowa}"
if [ -z "${DATA_PATHS:-}" ]; then
  K_SHOTS="${K_SHOT:-4}" OUTPUT="$output/run_data" exec bash "$here/infer_auto.sh" "$@"
fi
for path in $DATA_PATHS; do
  K_SHOTS="${K_SHOT:-4}" DATA_PATH="$path" OUTPUT="$output/$(basename "$path")" bash "$here/infer_auto.sh" "$@"
done
