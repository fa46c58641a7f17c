#!/usr/bin/env bash
# The whole method on two CPU cores, from nothing: environment, policy, warm start, GRPO, table and picture.
#   bash scripts/quickstart.sh [SEED]     seed 0 writes runs/quickstart, another seed runs/quickstart_seedSEED
# Run again, it goes on where it stopped, or says that it is done; each program refuses what other settings made.
set -euo pipefail
seed=${1:-0}
case $seed in *[!0-9]*) echo "error: the seed must be a number: bash scripts/quickstart.sh 1" >&2; exit 1 ;; esac
began=$SECONDS
. "$(dirname "$0")/environment.sh"
environment_s=$((SECONDS - began))

name=quickstart; [ "$seed" = 0 ] || name=quickstart_seed$seed
run=runs/$name policy=runs/policy_seed$seed
python=.venv/bin/python
mkdir -p runs

say "1/4 policy: tokenizer, random weights, demonstrations of a scripted expert"
$python scripts/make_policy.py configs/policy/small.yaml output=$policy policy.seed=$seed
policy_s=$((SECONDS - began - environment_s))

say "2/4 warm start: supervised fine-tuning on the demonstrations (DeepSpeed ZeRO-3, two ranks)"
$python scripts/train_sft.py configs/sft/small.yaml model=$policy/initial output=$policy/warm seed=$seed \
    "sources=[{path: $policy/drills.jsonl, steps: 450}, {path: $policy/demonstrations.jsonl, steps: 850}]"
warm_s=$((SECONDS - began - environment_s - policy_s))

say "3/4 GRPO: agents in sandboxes, vLLM, tests as judges, live weight updates; logs in $run/logs"
mkdir -p $run
[ -f $run/stages.json ] ||
    echo "{\"environment\": $environment_s, \"policy\": $policy_s, \"warm_start\": $warm_s}" >$run/stages.json
$python scripts/train_grpo.py configs/quickstart.yaml run=$run model=$policy/warm rollout.seed=$seed rollout.tasks.seed=$seed

say "4/4 audit and picture"
$python analysis/audit.py $run
$python analysis/table.py $run
echo "picture: $($python analysis/curves.py $run)    all of it: $run/summary.json    $((SECONDS - began)) s"
