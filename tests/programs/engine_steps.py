"""Run by test_engine.py: for each case a new engine makes three optimizer steps on fixed rows, dealt to the ranks.

    python tests/programs/engine_steps.py MODEL FOLDER GROUPS

Ranks are forked from this process when it has imported DeepSpeed, which takes longer than a case; torchrun's would all
do so.
GROUPS, JSON: how many ranks -> their cases, one group after the other. Cases: name -> {"engine": EngineConfig's
entries, "tokens": of a row, "share": bool, "order": seed of a shuffle, "load": folder,
"save": folder, "steps": int, "algorithm": AlgorithmConfig's entries; without, the loss is linear in the logprobs;
"refused": MODEL ("": the first) that must be, instead of steps: every rank writes why to NAME.RANK.txt; "spoiled": the
last rank's loss is NaN,
"ends": the first step must}. Rank 0 writes FOLDER/NAME.safetensors (weights), NAME.gradients (of the first step),
NAME.json (losses),
and with a KL term NAME.reference.json (the linear loss under the reference policy, and the KL to it). Where the step
ends, every rank
writes FOLDER/NAME.RANK.json: [why, optimizer steps, largest over ranks of (NaN on the last one)].
"""

import ctypes
import json
import math
import multiprocessing.connection
import os
import random
import signal
import sys
from pathlib import Path

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from coderepairrl.errors import ConfigError, EngineError
from coderepairrl.processes.starting import free_port
from coderepairrl.training import batch
from coderepairrl.training.algorithm_config import AlgorithmConfig
from coderepairrl.training.algorithms import low_variance_kl, policy_loss
from coderepairrl.training.engine import Engine
from coderepairrl.training.engine_config import EngineConfig
from coderepairrl.types import Sample


def samples(step: int) -> list[Sample]:
    """12 rows in 3 groups: within a group they share a prefix, and half of them a longer one."""
    rng = random.Random(step)
    out = []
    for group in range(3):
        prefix, middle = ([rng.randrange(20, 300) for _ in range(n)] for n in (9, 7))
        for number in range(4):
            ids = (
                prefix + (middle if number % 2 else []) + [rng.randrange(20, 300) for _ in range(rng.randrange(3, 30))]
            )
            mask = [0] * 5 + [int(rng.random() < 0.7) for _ in ids[5:-1]] + [1]
            out.append(
                Sample(
                    f"g{group}",
                    f"t{group}-{number}",
                    0,
                    tuple(ids),
                    tuple(range(len(ids))),
                    tuple(mask),
                    tuple(-0.5 * m for m in mask),
                    tuple(rng.uniform(-1, 1) * m for m in mask),
                    tuple(0 if m else -1 for m in mask),
                )
            )
    return out


def run(model: str, folder: Path, name: str, options: dict) -> None:
    algorithm = AlgorithmConfig(**options["algorithm"]) if "algorithm" in options else None
    entries = {"learning_rate": 1e-3, "weight_decay": 0.01, "warmup_steps": 2, "gradient_clipping": 0.5} | options.get(
        "engine", {}
    )
    engine = Engine(
        model,
        EngineConfig(**entries),
        Path(options["load"]) if "load" in options else None,
        reference=algorithm is not None and algorithm.kl_coefficient > 0,
    )
    losses, gradients, references = [], {}, []
    for step in range(engine.steps, engine.steps + options.get("steps", 3)):
        rows = samples(step)
        random.Random(options.get("order", 0)).shuffle(rows)
        count = sum(sum(row.loss_mask) for row in rows)
        micro_batches = batch.micro_batches(
            rows,
            [1 / count] * len(rows),
            options.get("tokens", 64),
            engine.row_rank,
            engine.row_ranks,
            hidden_size=engine.hidden_size,
            share_prefixes=options.get("share", True),
        )
        sums = [0.0, 0.0, 0.0]
        for i, micro in enumerate(micro_batches):
            reference = engine.reference_logprobs(micro, 0.8) if algorithm and algorithm.kl_coefficient else None
            logprobs, _ = engine.logprobs(micro.to(engine.device), 0.8)
            linear = lambda of, micro=micro: -(of * micro.advantages * micro.weights).sum()
            if algorithm:
                loss = (
                    policy_loss(
                        algorithm, logprobs, micro.behaviour_logprobs, micro.advantages, micro.branches, reference
                    ).losses
                    * micro.weights
                ).sum()
            else:
                loss = linear(logprobs)
            if options.get("spoiled") and engine.rank == engine.world_size - 1:
                loss = loss * math.nan
            engine.backward(loss, last=i == len(micro_batches) - 1)
            if engine.leads_row:
                sums[0] += loss.item()
            if engine.leads_row and reference is not None:
                sums[1] += linear(reference).item()
                sums[2] += (low_variance_kl(logprobs.detach(), reference) * micro.weights).sum().item()
        sums = engine.sum(sums)
        losses.append(sums[0])
        references.append(sums[1:])
        if step == 0:
            # collective
            gradients = {
                key: safe_get_full_grad(p).clone()
                for key, p in engine.module.model.named_parameters()
                if p.requires_grad
            }
        if options.get("ends"):
            write_end(engine, folder / f"{name}.{engine.rank}.json")
            break
        engine.step()
    if "save" in options:
        engine.save(Path(options["save"]), {"step": engine.steps, "version": engine.steps})
    weights = engine.weights()
    if engine.rank == 0:
        save_file(weights, folder / f"{name}.safetensors")
        save_file(gradients, folder / f"{name}.gradients")
        (folder / f"{name}.json").write_text(json.dumps(losses))
        if algorithm and algorithm.kl_coefficient:
            (folder / f"{name}.reference.json").write_text(json.dumps(references))


def refused(folder: Path, name: str, options: dict) -> None:
    try:
        Engine(
            options["refused"] or sys.argv[1],
            EngineConfig(**{"learning_rate": 1e-3} | options.get("engine", {})),
            Path(options["load"]) if "load" in options else None,
        )
    except ConfigError as error:
        (folder / f"{name}.{torch.distributed.get_rank()}.txt").write_text(str(error))


def write_end(engine: Engine, path: Path) -> None:
    try:
        engine.step()
    except EngineError as error:
        largest = engine.max([math.nan if engine.rank == engine.world_size - 1 else 1.0])
        path.write_text(json.dumps([str(error), engine.steps, *map(str, largest)]))


def rank_of(rank: int, ranks: int, port: int, cases: dict[str, dict]) -> None:
    """One of the processes; it ends with the one that forked it, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    for name, options in cases.items():
        if "refused" in options:
            refused(Path(sys.argv[2]), name, options)
        else:
            run(sys.argv[1], Path(sys.argv[2]), name, options)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def main() -> None:
    # some CPUs have it: Muon would be held against float32 in float16
    get_accelerator().is_fp16_supported = lambda: False
    for ranks, cases in json.loads(sys.argv[3]).items():
        port = free_port("127.0.0.1")
        running = [
            multiprocessing.get_context("fork").Process(target=rank_of, args=(rank, int(ranks), port, cases))
            for rank in range(int(ranks))
        ]
        for process in running:
            process.start()
        while running:
            multiprocessing.connection.wait([process.sentinel for process in running])
            for process in running:
                if process.exitcode:
                    os._exit(1)  # the others wait for it: they end with this one
            running = [process for process in running if process.exitcode is None]


if __name__ == "__main__":
    main()
