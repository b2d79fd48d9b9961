#!/usr/bin/env bash
# run_conditions.sh MODEL [flags]. From outside: GPUS="0 1", LOG_DIR, CONFIG (condition file), DATA_PATH,
# WEIGHTS (FILE, or "resnet18=FILE wide_resnet50_2=FILE" where conditions have several backbones), DOWNLOAD=1,
# ITERATION (repeat number).
# Killed or interrupted: start it again with the same LOG_DIR; nothing finished is repeated.
# The scripts of the models read this file in: they stay in the list of processes under their own names, and a signal
# to them ends the queue and its trainings.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
flags=(--model "$1")
shift
# shellcheck disable=SC2206
[ -n "${GPUS:-}" ] && flags+=(--gpus $GPUS)
[ -n "${LOG_DIR:-}" ] && flags+=(--log-dir "$LOG_DIR")
[ -n "${CONFIG:-}" ] && flags+=(--conditions "$CONFIG")
[ -n "${DATA_PATH:-}" ] && flags+=(--data-path "$DATA_PATH")
# shellcheck disable=SC2206
[ -n "${WEIGHTS:-}" ] && flags+=(--weights $WEIGHTS)
[ -n "${DOWNLOAD:-}" ] && flags+=(--download)
[ -n "${ITERATION:-}" ] && flags+=(--iteration "$ITERATION")
child="" stopped=""
stop() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}
trap stop INT TERM HUP
"${PYTHON:-python}" "$here/run_conditions.py" "${flags[@]}" "$@" &
child=$!
[ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null || true
code=0
wait "$child" || code=$?
while kill -0 "$child" 2>/dev/null; do # a signal has ended the waiting, not the queue
  code=0
  wait "$child" || code=$?
done
[ -z "$stopped" ] || code=130
exit "$code"
