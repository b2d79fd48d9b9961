#!/usr/bin/env bash
# Late fusion of the two models that train_causal_film.sh and train_video_ae.sh leave under OUTPUT.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
out="${OUTPUT:-runs/weld}"
exec "${PYTHON:-python}" "$here/evaluate_fusion.py" --causal-checkpoint "$out/causal_film/best_model.pth" \
  --video-checkpoint "$out/video_ae/best_model.pt" --output-dir "$out/fusion" "$@"
