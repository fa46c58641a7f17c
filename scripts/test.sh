#!/usr/bin/env bash
# Makes the environment if it is missing, then passes the tests. Arguments go to pytest: bash scripts/test.sh -k ledger
set -euo pipefail
. "$(dirname "$0")/environment.sh"
exec .venv/bin/python -m pytest "$@"
