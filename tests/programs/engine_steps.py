"""Run by test_engine.py under torchrun: three optimizer steps on fixed rows, dealt to the ranks; rank 0 saves the weights.

    torchrun --nproc-per-node N tests/programs/engine_steps.py MODEL OUT.safetensors [LOAD_FOLDER] [SAVE_FOLDER]
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from coderepairrl.algorithms import token_logprobs
from coderepairrl.engine import Engine
from coderepairrl.engine_config import EngineConfig

model, out, load, save = (sys.argv[1:] + ["", ""])[:4]
torch.set_num_threads(1)
engine = Engine(model, EngineConfig(learning_rate=1e-3, weight_decay=0.01, warmup_steps=2, gradient_clipping=0.5))
first = engine.load(Path(load))["step"] if load else 0
for step in range(first, first + 3):
    rows = torch.randint(20, 300, (8, 24), generator=torch.Generator().manual_seed(step))  # (B, T)
    mine = rows[engine.rank :: engine.world_size]
    halves = mine.chunk(2)
    for i, half in enumerate(halves):
        logprobs, _ = token_logprobs(engine.logits(half), half)
        engine.backward(-logprobs.sum() / (8 * 23), last=i == len(halves) - 1)
    engine.step()
weights = engine.weights()
if save:
    if engine.rank == 0:
        engine.export(weights, Path(save).with_name("export"))
    engine.save(Path(save), {"step": first + 3, "version": 3}, Path(save).with_name("export"))
if engine.rank == 0:
    save_file(weights, out)
engine.close()
