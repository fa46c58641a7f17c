#!/usr/bin/env bash
# A pretrained language model learns to repair real packages: get the model, find bugs, demonstrate, warm start, GRPO, evaluate.
#   bash scripts/pretrained.sh gpu     on one GPU and some 16 cores, writes runs/pretrained
#   bash scripts/pretrained.sh cpu     the same programs on two cores, a few bugs and two steps: shows that it works, teaches nothing
# Run again, it goes on where it stopped; each program refuses what other settings made. PYTHON=python3 takes another environment.
set -euo pipefail
form=${1:-}
case $form in gpu | cpu) ;; *) echo "error: say for what: bash scripts/pretrained.sh gpu, or cpu" >&2; exit 1 ;; esac
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
say() { echo "== $*"; }

run=runs/pretrained tried=() demonstrate=() sft=() grpo=() evaluate=()
if [ $form = gpu ]; then
    tried=(toolz=500 sqlparse=800 cachetools=500 marshmallow=800 tinydb=400 bottle=700 configobj=500 geojson=300 hyperframe=300
        isodate=500 marko=800 munch=300 parsy=400 simpleeval=500 tomlkit=800 webcolors=300)
else
    run=runs/pretrained_cpu
    cpu="server: {dtype: float32, kv_cache_mib: 512, max_model_len: 2048, threads: 2, extra_arguments: []}"
    limits="limits: {max_turns: 3, max_total_tokens: 2048, max_completion_tokens: 48, deadline_s: 900}"
    tasks="tasks: {name: real_packages, path: coderepairrl/tasks/mutations.jsonl, train: 1, heldout: 1, heldout_packages: [bracex]}"
    tried=(cachetools=4)
    demonstrate=(repeat=1 "scaffold={name: terminal, max_output_chars: 1000}")
    sft=(batch_tokens=2048 micro_batch_tokens=4096 "sources=[{path: $run/demonstrations.jsonl, steps: 2}]"
        "engine={learning_rate: 1.0e-5, dtype: float32}")
    rollout="rollout={$tasks, scaffold: {name: terminal, max_output_chars: 1000}, $cpu, $limits"
    grpo=("$rollout, groups_per_step: 1, group_size: 2, rewards: {weights: {tests: 1.0, random: 1.0}}}" engine.dtype=float32
        training.steps=1 training.micro_batch_tokens=4096)
    evaluate=("$rollout, evaluation: {samples: 1, greedy: false}, rewards: {weights: {tests: 1.0}}}")
fi
mkdir -p $run

say "1/6 model"
$python scripts/get_model.py smollm2-135m
say "2/6 bugs with failing tests"
$python scripts/prepare_bugs.py $run/bugs.jsonl --packages "${tried[@]}"
say "3/6 demonstrations"
$python scripts/prepare_demonstrations.py configs/pretrained/demonstrations.yaml bugs=$run/bugs.jsonl output=$run/demonstrations.jsonl \
    ${demonstrate[@]+"${demonstrate[@]}"}
say "4/6 warm start"
$python scripts/train_sft.py configs/pretrained/sft.yaml output=$run/warm \
    "${sft[@]-sources=[{path: $run/demonstrations.jsonl, steps: 800\}]}"
say "5/6 GRPO"
$python scripts/train_grpo.py configs/pretrained/grpo.yaml run=$run/grpo model=$run/warm ${grpo[@]+"${grpo[@]}"}
say "6/6 held-out packages: before any training, after the warm start, after GRPO"
for name in smollm2-135m warm grpo; do
    model=$run/$name; [ $name != smollm2-135m ] || model=models/smollm2-135m
    $python scripts/evaluate.py configs/pretrained/evaluate.yaml run=$run/eval_$name model=$model ${evaluate[@]+"${evaluate[@]}"}
done
