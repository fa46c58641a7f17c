#!/usr/bin/env bash
# Compiles requirements/cpu.lock and gpu.lock from requirements/*.in and pyproject.toml. What is locked stays as long as it
# fits; arguments go to uv: bash scripts/lock.sh --upgrade-package transformers
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {  # compile KIND OPTION ...: the lock's own comments stay
    local lock=requirements/$1.lock
    local notes
    notes=$(grep '^#' "$lock" || true)
    .venv/bin/uv pip compile -q "requirements/$1.in" -o "$lock" --python-version 3.11 \
        --python-platform x86_64-manylinux_2_28 --no-annotate --no-header --no-emit-package coderepairrl "${@:2}"
    [ -z "$notes" ] || { printf '%s\n' "$notes" | cat - "$lock" >"$lock.tmp" && mv "$lock.tmp" "$lock"; }
}

# as in environment.sh: torch+cpu may lie in a folder that pip is configured to look into
links=$(.venv/bin/python -m pip config list | sed -n "s/.*find-links='\(.*\)'/\1/p" | tail -n 1)
torch=(--torch-backend cpu)
ls "${links:-/nowhere}"/torch-*+cpu-*.whl >/dev/null 2>&1 && torch=(--find-links "$links")
# vLLM names them for sounds, pictures and GPUs, and does without: 1 GB
unused=(--no-emit-package torchaudio --no-emit-package torchcodec --no-emit-package torchvision --no-emit-package triton)
compile cpu "${torch[@]}" "${unused[@]}" "$@"
compile gpu "$@"
