#!/usr/bin/env bash
# Sends what offline runs have logged to W&B, from a machine with internet: for compute nodes without. A run may be under way, and
# the attempts of a run become one run there. Call it again at any time; every EVERY seconds with: EVERY=300 bash scripts/sync_wandb.sh ...
#   bash scripts/sync_wandb.sh runs/my_grid [FOLDER ...]
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 1; }
wandb=${WANDB:-$(dirname "$0")/../.venv/bin/wandb}
[ -x "$wandb" ] || { echo "error: $wandb is not there: make the environment first (README), or name it: WANDB=/path/to/wandb" >&2; exit 1; }
for folder in "$@"; do
    [ -d "$folder" ] || { echo "error: $folder is no folder: give run folders, or a folder of them" >&2; exit 1; }
done
while true; do
    failed=0 changed=()
    while IFS= read -r -d '' log; do  # W&B leaves LOG.synced behind
        [ "$log.synced" -nt "$log" ] || changed+=("$(dirname "$log")")
    done < <(find "$@" -type f -path '*/wandb/offline-run-*/run-*.wandb' -print0 | sort -z)
    echo "${#changed[@]} offline runs to send"
    [ ${#changed[@]} = 0 ] || "$wandb" sync --yes --include-synced "${changed[@]}" \
        || { echo "error: not all was sent: see above; the same command tries again" >&2; failed=1; }
    [ -n "${EVERY:-}" ] || exit $failed
    sleep "$EVERY"
done
