#!/usr/bin/env bash
# run_conditions.sh MODEL [flags]. From outside: GPUS="0 1", LOG_DIR, CONFIG (condition file), DATA_PATH, WEIGHTS,
# ITERATION (repeat number).
# Killed or interrupted: start it again with the same LOG_DIR; nothing finished is repeated.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
flags=(--model "$1")
shift
# shellcheck disable=SC2206
[ -n "${GPUS:-}" ] && flags+=(--gpus $GPUS)
[ -n "${LOG_DIR:-}" ] && flags+=(--log-dir "$LOG_DIR")
[ -n "${CONFIG:-}" ] && flags+=(--conditions "$CONFIG")
[ -n "${DATA_PATH:-}" ] && flags+=(--data-path "$DATA_PATH")
[ -n "${WEIGHTS:-}" ] && flags+=(--weights "$WEIGHTS")
[ -n "${ITERATION:-}" ] && flags+=(--iteration "$ITERATION")
exec "${PYTHON:-python}" "$here/run_conditions.py" "${flags[@]}" "$@"
