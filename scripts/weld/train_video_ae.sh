#!/usr/bin/env bash
# Train the video auto-encoder of late fusion. Flags go to train_video_ae.py; OUTPUT and DATA_PATH as elsewhere.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
flags=(--output-dir "${OUTPUT:-runs/weld}/video_ae")
[ -n "${DATA_PATH:-}" ] && flags+=(--data-path "$DATA_PATH")
exec "${PYTHON:-python}" "$here/train_video_ae.py" "${flags[@]}" "$@"
