#!/usr/bin/env bash
# Run an experiment script several times, each time once all GPUs are idle.
set -uo pipefail

usage() {
  cat <<'TEXT'
Usage: auto_experiment_runner.sh -s SCRIPT [options] [REPEATS]

  -s, --script PATH         script to run (required unless --check-only)
  -r, --results PATH        folder of logs and summary (default: results)
  -i, --interval SEC        seconds between looks at the GPUs (default: 30)
  -t, --threshold PERCENT   a GPU at or below this utilisation is idle (default: 10)
  -m, --memory MB           ... and with at most this much memory in use (default: 2000)
  -w, --wait SEC            longest wait for idle GPUs before a repeat (default: 7200)
      --safety-wait SEC     further wait once they are idle (default: 30)
  -g, --monitor-gpus "0 1"  only these GPUs must be idle (default: all)
      --gpus "0 1"          GPUs that the script uses (it sees GPUS)
      --config PATH         condition file for the script (it sees CONFIG)
  -a, --args "FLAGS"        flags for the script
  -c, --check-only          print the state of the GPUs and leave
  -h, --help                this text

REPEATS defaults to 3. The script sees ITERATION=1, 2, ... Exit code: 0 all went well, 1 a repeat failed, 2 wrong usage,
130 interrupted. Without nvidia-smi there is nothing to wait for.
TEXT
}

die() { echo "auto_experiment_runner.sh: $1" >&2; exit 2; }

script="" results="results" interval=30 threshold=10 memory=2000 wait_limit=7200 safety=30 repeats=3 check=0 flags=""
monitored=""
while [ $# -gt 0 ]; do
  case "$1" in
    -s|--script|-r|--results|-i|--interval|-t|--threshold|-m|--memory|-w|--wait|--safety-wait|-a|--args|\
    -g|--monitor-gpus|--gpus|--config)
      [ $# -ge 2 ] || die "$1 needs a value" ;;
  esac
  case "$1" in
    -s|--script) script="$2"; shift 2 ;;
    -r|--results) results="$2"; shift 2 ;;
    -i|--interval) interval="$2"; shift 2 ;;
    -t|--threshold) threshold="$2"; shift 2 ;;
    -m|--memory) memory="$2"; shift 2 ;;
    -w|--wait) wait_limit="$2"; shift 2 ;;
    --safety-wait) safety="$2"; shift 2 ;;
    -a|--args) flags="$2"; shift 2 ;;
    -g|--monitor-gpus) monitored=" ${2//,/ } "; shift 2 ;;
    --gpus) export GPUS="${2//,/ }"; shift 2 ;;
    --config) export CONFIG="$2"; shift 2 ;;
    -c|--check-only) check=1; shift ;;
    -h|--help) usage; exit 0 ;;
    -*) die "unknown option $1 (see --help)" ;;
    *) repeats="$1"; shift ;;
  esac
done
for number in "$interval" "$threshold" "$memory" "$wait_limit" "$safety" "$repeats"; do
  case "$number" in ''|*[!0-9]*) die "expected a whole number, got '$number'" ;; esac
done

gpu_table() {
  command -v nvidia-smi >/dev/null 2>&1 || return 0
  nvidia-smi --query-gpu=index,utilization.gpu,memory.used,memory.total,temperature.gpu \
    --format=csv,noheader,nounits | awk -F', *' -v only="$monitored" 'only == "" || index(only, " " $1 " ")'
}

all_idle() {
  gpu_table | awk -F', *' -v t="$threshold" -v m="$memory" '$2 > t || $3 > m { busy = 1 } END { exit busy }'
}

if [ "$check" = 1 ]; then
  table="$(gpu_table)"
  [ -n "$table" ] || { echo "no NVIDIA GPU found"; exit 0; }
  echo "gpu, utilisation %, memory used MB, memory total MB, temperature C"
  echo "$table"
  all_idle && echo "all idle" || echo "busy"
  exit 0
fi
[ -n "$script" ] || die "-s SCRIPT is required (see --help)"
[ -f "$script" ] || die "$script: no such file"

mkdir -p "$results"
stamp="$(date +%Y%m%d_%H%M%S)"
log="$results/auto_experiment_$stamp.log"
summary="$results/experiment_summary_$stamp.txt"
child=""
say() { echo "$(date '+%F %T') $1" | tee -a "$log"; }
interrupted() {
  trap '' INT TERM # a second signal must not end the waiting
  [ -n "$child" ] && kill -TERM "$child" 2>/dev/null && wait "$child" 2>/dev/null
  say "interrupted"
  exit 130
}
trap interrupted INT TERM

wait_for_idle() {
  local started=$SECONDS
  until all_idle; do
    if [ $((SECONDS - started)) -ge "$wait_limit" ]; then
      say "GPUs still busy after $wait_limit s"
      return 1
    fi
    sleep "$interval" & wait $!
  done
  command -v nvidia-smi >/dev/null 2>&1 && { sleep "$safety" & wait $!; }
  return 0
}

failed=0
for ((i = 1; i <= repeats; i++)); do
  if [ "$i" -gt 1 ] && ! wait_for_idle; then
    echo "repeat $i: not started (GPUs busy)" >>"$summary"
    failed=$((failed + 1))
    continue
  fi
  say "repeat $i of $repeats: $script $flags"
  # shellcheck disable=SC2086
  ITERATION="$i" bash "$script" $flags >>"$log" 2>&1 &
  child=$!
  wait "$child"
  code=$?
  child=""
  say "repeat $i ended with exit code $code"
  echo "repeat $i: exit code $code" >>"$summary"
  [ "$code" = 0 ] || failed=$((failed + 1))
done
say "$((repeats - failed)) of $repeats repeats went well; summary in $summary"
[ "$failed" = 0 ]
