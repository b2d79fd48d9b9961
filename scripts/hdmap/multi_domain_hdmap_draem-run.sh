#!/usr/bin/env bash
# All conditions of multi_domain_hdmap_draem-exp_condition.json, one queue per GPU. Flags: see run_conditions.py --help.
exec "$(dirname "${BASH_SOURCE[0]}")/run_conditions.sh" draem "$@"
