#!/usr/bin/env bash
# Makes the environment if it is missing, then passes the tests. Arguments go to pytest: bash scripts/test.sh -k ledger
set -euo pipefail
. "$(dirname "$0")/environment.sh"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then  # a Slurm of two nodes on this machine; without it those tests are left out
    need slurmctld slurm-wlm
    need munged munge
    need ip iproute2
    need javac openjdk-17-jdk-headless  # and JUnit; without them tests of Java are left out
    need /usr/share/java/junit4.jar junit4
fi
workers=$(($(nproc) + 2))  # more than cores: a test of a whole run waits a third of its time
exec .venv/bin/python -m pytest -n "$((workers < 8 ? workers : 8))" --dist worksteal "$@"
