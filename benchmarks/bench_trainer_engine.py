"""The engine of this project with a stopwatch, a part of bench_trainer.py: single rows, and a batch of agents'
trajectories."""

import time
from pathlib import Path

import numpy as np
from bench_trainer_batches import AgentConfig, agent_rows, row
from bench_trainer_shapes import LORA_RANK, SHAPES, flops, recomputed_share
from pydantic import PositiveInt

from coderepairrl.config import Config, Share
from coderepairrl.training.engine_config import EngineConfig, LoRAConfig


class RowConfig(Config):
    """One length that is measured."""

    tokens: PositiveInt  # of the row
    recomputed: Share | None = None  # share of the layers; null: the least that fits
    offload_activations: bool = False  # to CPU memory


class Trainer:
    """The engine of this project on one shape, and a step of it with a stopwatch."""

    def __init__(self, shape: str, mode: str, folder: Path, entries: dict):
        import torch

        from coderepairrl.training.algorithm_config import AlgorithmConfig
        from coderepairrl.training.engine import Engine

        self.torch, self.shape, self.mode = torch, SHAPES[shape], mode
        self.gpu = torch.cuda.is_available()
        entries = {
            "learning_rate": 1e-6,
            "dtype": "bfloat16" if self.gpu else "float32",
            "leaf_modules": ["Qwen3DecoderLayer"],
        } | entries
        self.engine = Engine(
            folder,
            EngineConfig(**entries, lora=LoRAConfig(rank=LORA_RANK) if mode == "lora" else None, random_weights=True),
        )
        self.algorithm = AlgorithmConfig(name="dapo")

    def now(self) -> float:
        if self.gpu:
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def step(self, micro_batches: list) -> tuple[float, float]:
        """Seconds of (forward and backward, optimizer step)."""
        from coderepairrl.training.algorithms import policy_loss

        start = self.now()
        for i, micro in enumerate(micro_batches):
            micro = micro.to(self.engine.device)
            logprobs, _ = self.engine.logprobs(micro, 1.0)
            out = policy_loss(self.algorithm, logprobs, micro.behaviour_logprobs, micro.advantages, micro.branches)
            self.engine.backward((out.losses * micro.weights).sum(), last=i == len(micro_batches) - 1)
        middle = self.now()
        self.engine.step()
        return middle - start, self.now() - middle

    def set_recomputed(self, tokens: int) -> float:
        """Recomputes as few layers as the memory allows for a row of so many tokens. Returns their share."""
        gpu_bytes = self.torch.cuda.get_device_properties(0).total_memory if self.gpu else 1e15
        share = recomputed_share(
            self.shape, self.mode, tokens // self.engine.config.sequence_ranks, self.engine.world_size, gpu_bytes
        )
        self.recompute(share)
        return share

    def recompute(self, share: float) -> None:
        from coderepairrl.training.model import recompute

        recompute(self.engine.module.model, share)

    def memory(self, reset: bool = False) -> tuple[float | None, float | None]:
        """GiB (now, at most since the last reset); None without a GPU."""
        if not self.gpu:
            return None, None
        if reset:
            self.torch.cuda.reset_peak_memory_stats()
        return self.torch.cuda.memory_allocated() / 2**30, self.torch.cuda.max_memory_allocated() / 2**30


def run_rows(case: dict, report) -> None:
    trainer = Trainer(case["shape"], case["mode"], Path(case["folder"]), case["engine"])
    for options in case["rows"]:
        report(
            run_row(trainer, RowConfig(**options), case["measured_s"]) | {"shape": case["shape"], "mode": case["mode"]}
        )
    trainer.engine.close()


def run_row(trainer: Trainer, options: RowConfig, measured_s: float) -> dict:
    from coderepairrl.training import batch

    engine, shape, tokens, rng = trainer.engine, trainer.shape, options.tokens, np.random.default_rng(0)
    share = trainer.set_recomputed(tokens) if options.recomputed is None else options.recomputed
    trainer.recompute(share)
    engine.config = engine.config.model_copy(update={"offload_activations": options.offload_activations})
    mask = np.ones(tokens, dtype=np.int64)
    rows = [
        row(r, rng.integers(1, shape["vocab_size"], tokens), mask, f"g{r}", shape["vocab_size"], 1.0)
        for r in range(engine.row_ranks)
    ]
    micro_batches = batch.micro_batches(
        rows,
        [1 / tokens / len(rows)] * len(rows),
        tokens,
        engine.row_rank,
        engine.row_ranks,
        hidden_size=engine.hidden_size,
    )
    trainer.step(micro_batches)
    state, _ = trainer.memory(reset=True)
    seconds = []
    until = engine.max([time.perf_counter() + measured_s])[0]
    while not seconds or engine.max([time.perf_counter()])[0] < until:
        seconds.append(trainer.step(micro_batches))
    forward_backward, step = np.median(seconds, axis=0).tolist()
    _, peak = trainer.memory()
    # of one GPU
    work = (
        flops(shape, trainer.mode, tokens, tokens - 1, tokens * (tokens + 1) // 2) / 1e12 / engine.config.sequence_ranks
    )
    return {
        "tokens": tokens,
        "ranks": engine.world_size,
        "sequence_ranks": engine.config.sequence_ranks,
        "recomputed": round(share, 3),
        "offload_activations": options.offload_activations,
        "pass_s": forward_backward,
        "step_s": step,
        "measured": len(seconds),
        "tokens_s": tokens * engine.row_ranks / (forward_backward + step),
        "tflops_pass": work / forward_backward,
        "tflops_step": work / (forward_backward + step),
        "peak_gib": peak,
        "mib_a_token": (peak - state) * 1024 / tokens if trainer.gpu else None,
    }


def run_agent(case: dict, report) -> None:
    from coderepairrl.training import batch
    from coderepairrl.training.algorithms import row_weights

    config = AgentConfig(**case["agent"])
    trainer = Trainer(config.shape, config.mode, Path(case["folder"]), case["engine"])
    engine, rows = trainer.engine, agent_rows(config)
    tokens, trained = sum(len(r.token_ids) for r in rows), sum(sum(r.loss_mask) for r in rows)
    share = trainer.set_recomputed(config.row_tokens)
    weights = row_weights("token", rows, 0)
    for shared in (True, False):
        make = lambda chosen, shared=shared: batch.micro_batches(
            chosen,
            weights[: len(chosen)],
            config.row_tokens,
            engine.row_rank,
            engine.row_ranks,
            hidden_size=engine.hidden_size,
            share_prefixes=shared,
        )
        trainer.step(make(rows[: config.group_size]))  # warm
        trainer.memory(reset=True)
        start = trainer.now()
        micro_batches = make(rows)
        packed = trainer.now() - start
        forward_backward, step = trainer.step(micro_batches)
        (computed,) = engine.sum([engine.leads_row * sum(m.token_ids.numel() for m in micro_batches)])
        _, peak = trainer.memory()
        seconds = packed + forward_backward + step
        report(
            {
                "trainer": "this one, shared prefixes" if shared else "this one, nothing shared",
                "ranks": engine.world_size,
                "trajectories": len(rows),
                "tokens": tokens,
                "trained_tokens": trained,
                "computed_tokens": int(computed),
                "micro_batches": len(micro_batches),
                "recomputed": round(share, 3),
                "seconds": seconds,
                "packing_s": packed,
                "step_s": step,
                "tokens_s": tokens / seconds,
                "peak_gib": peak,
            }
        )
    engine.close()
