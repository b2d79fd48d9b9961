#!/usr/bin/env bash
# Is this machine ready? Labels of the data, loss and sampler tests, then a quick training run.
#   bash scripts/weld/test_server.sh [DATA]      ($OUTPUT: where the quick run goes)
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python}"
data=()
if [[ $# -gt 0 ]]; then
    "$python" scripts/weld/check_labels.py "$1"
    data=(--data-path "$1" --dummy)
else
    "$python" scripts/weld/check_labels.py
fi
"$python" -m pytest -q tests/unit/losses/test_supcon_extra.py tests/unit/data/test_samplers.py
exec "$python" scripts/weld/train_supcon.py --quick-test --debug --fresh --output-dir "${OUTPUT:-runs/weld_supcon/quick-test}" "${data[@]}"
