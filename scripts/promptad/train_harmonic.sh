#!/usr/bin/env bash
# All classes x k x tasks with one fusion. Everything can be set from outside:
#   DATA_PATH=DIR DATASETS="mvtec visa" CLASSES="bottle cable" K_SHOTS="1 2 4" TASKS="cls seg" EPOCHS=100
#   FUSION_MODE=harmonic OUTPUT=result/harmonic_baseline TRAIN_FLAGS="--backbone NAME --weights FILE"
# CLASSES=key is the document's short list. Flags go to train_harmonic.py (--parallel N, --gpus 0 1, --dry-run, ...).
# Without DATA_PATH the built-in demo data are used. Killed or interrupted: start it again.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
flags=(--fusion-mode "${FUSION_MODE:-harmonic}" --epochs "${EPOCHS:-100}" --output "${OUTPUT:-result/harmonic_baseline}")
[ -n "${DATA_PATH:-}" ] && flags+=(--data-path "$DATA_PATH")
# shellcheck disable=SC2206
[ -n "${DATASETS:-}" ] && flags+=(--datasets $DATASETS)
# shellcheck disable=SC2206
[ -n "${CLASSES:-}" ] && flags+=(--classes $CLASSES)
# shellcheck disable=SC2206
[ -n "${K_SHOTS:-}" ] && flags+=(--k-shots $K_SHOTS)
# shellcheck disable=SC2206
[ -n "${TASKS:-}" ] && flags+=(--tasks $TASKS)
[ -n "${TRAIN_FLAGS:-}" ] && flags+=("--train-flags=$TRAIN_FLAGS")
exec "${PYTHON:-python}" "$here/train_harmonic.py" "${flags[@]}" "$@"
