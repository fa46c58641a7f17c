"""Shared by several tests: test_inputs.py and others."""

import importlib
from pathlib import Path
from typing import Any

from conftest import ROOT

from coderepairrl.config import load
from coderepairrl.run import inputs

WHOLE = {
    "scripts/train_grpo.py": ("TrainConfig", "configs/quickstart.yaml", inputs.TRAINING),
    "scripts/evaluate.py": ("EvaluateConfig", "configs/eval/quickstart.yaml", inputs.EVALUATION),
    "scripts/train_sft.py": ("SFTConfig", "configs/sft/small.yaml", inputs.SFT),
    "scripts/record_demonstrations.py": ("RecordConfig", "configs/demonstrations/aider.yaml", inputs.RECORDING),
    "scripts/make_policy.py": ("MakePolicyConfig", "configs/policy/small.yaml", ()),
    "scripts/prepare_tasks.py": ("PrepareConfig", "configs/tasks/swe_gym.yaml", inputs.ADMISSION),
}


def configuration(program: str, monkeypatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    name, path, _ = WHOLE[program]
    return load(getattr(importlib.import_module(Path(program).stem), name), ROOT / path)


def model(folder: Path, **files: str) -> str:
    folder.mkdir(parents=True)
    usual = {"config__json": "{}", "tokenizer__json": "t", "model__safetensors": "w"}
    for name, text in (usual | files).items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)
