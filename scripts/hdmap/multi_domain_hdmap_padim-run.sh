#!/usr/bin/env bash
# All conditions of multi_domain_hdmap_padim-exp_condition.json, one queue per GPU. Flags: see run_conditions.py --help.
# To stop it and its trainings: pkill -f multi_domain_hdmap_padim-run.sh, or the same command with --stop.
. "$(dirname "${BASH_SOURCE[0]}")/run_conditions.sh" padim "$@"
