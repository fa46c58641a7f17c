#!/usr/bin/env bash
# A real Slurm of three nodes on this machine: a grid of four quickstart runs on node pairs in Apptainer images, and runs that are killed,
# requeued, preempted, timed out and cut off, and come back. Needs root (network namespaces); half an hour on two cores.
#   bash scripts/test_slurm.sh [pytest's arguments]        tables and pictures: runs/test_slurm/
set -euo pipefail
. "$(dirname "$0")/environment.sh"
[ "$(id -u)" = 0 ] || die "a Slurm with several nodes on one machine needs root: run this as root, or in a container where you are root"
need slurmctld slurm-wlm
need munged munge
need ip iproute2
bash scripts/install_apptainer.sh
say "images: serve, train (built once)"
LOCK=requirements/cpu.lock bash slurm/images/build.sh serve train
export CODEREPAIRRL_RESULTS=$PWD/runs/test_slurm PATH=$PWD/.venv/bin:$PATH
rm -rf "$CODEREPAIRRL_RESULTS"
mkdir -p "$CODEREPAIRRL_RESULTS"
say "the tests"
status=0
.venv/bin/python -m pytest -m cluster tests/cluster/test_cluster.py tests/cluster/test_grid_run.py -p no:xdist --durations=0 "$@" || status=$?
if [ -f "$CODEREPAIRRL_RESULTS/recoveries.md" ]; then
    printf '\n| disturbance | start-up, s | back at work after, s | steps trained again | |\n|---|---|---|---|---|\n'
    cat "$CODEREPAIRRL_RESULTS/recoveries.md"
fi
exit $status
