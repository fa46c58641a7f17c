"""Supervised fine-tuning on conversations, on the same ZeRO-3 engine as reinforcement learning.

    python scripts/train_sft.py configs/sft/small.yaml [a.b=c ...]

Reads JSONL rows {"messages": [...], "tools": [...]}, one source after the other; renders them with the model's chat template;
the loss is on what the assistant says (weight 1) and, weakly, on the rest (`context_weight`). An assistant message with
"train": false is shown but never learnt. Writes a Hugging Face folder.
"""
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from coderepairrl.algorithms import token_logprobs, weighted_cross_entropy
from coderepairrl.batch import pad, rounded
from coderepairrl.config import Config, load
from coderepairrl.engine import Engine
from coderepairrl.engine_config import EngineConfig
from coderepairrl.errors import ConfigError
from coderepairrl.launch import become_ranks
from coderepairrl.metrics import Metrics
from coderepairrl.program import program


class Source(Config):
    path: str
    steps: int


class SFTConfig(Config):
    model: str
    output: str
    sources: list[Source]
    engine: EngineConfig
    batch_tokens: int = 4096  # padded tokens of one step on all ranks together
    context_weight: float = 0.1
    seed: int = 0
    ranks: int = 1
    threads: int = 1  # of each rank


def encode(row: dict, tokenizer, context_weight: float) -> tuple[list[int], list[float]]:
    """(token ids, weight of each as a target)."""
    out = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools"), return_dict=True, return_assistant_tokens_mask=True)
    ids, weights = out["input_ids"], []
    turns = iter([m for m in row["messages"] if m["role"] == "assistant"])
    for said, run in groupby(out["assistant_masks"]):
        weight = (float(next(turns).get("train", True)) if said else context_weight)
        weights += [weight] * len(list(run))
    return ids, weights


def batches(rows: list[tuple[list[int], list[float]]], tokens: int, ranks: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless: row indices whose padded size is at most `tokens`; rows of similar length together, batches in random order."""
    while True:
        buckets: dict[int, list[int]] = {}
        for i, (ids, _) in enumerate(rows):
            buckets.setdefault(rounded(len(ids)), []).append(i)
        out = []
        for width, members in buckets.items():
            rng.shuffle(members)
            size = max(ranks, tokens // width // ranks * ranks)
            out += [members[i : i + size] for i in range(0, len(members), size) if len(members) - i >= ranks]
        rng.shuffle(out)
        yield from out


def read(source: Source, engine: Engine, config: SFTConfig) -> list[tuple[list[int], list[float]]]:
    if not Path(source.path).exists():
        raise ConfigError(f"{source.path}: no such file: make the demonstrations first (scripts/make_policy.py)")
    with open(source.path) as file:
        lines = file.readlines()
    return [encode(json.loads(line), engine.tokenizer, config.context_weight) for line in tqdm(lines, desc=Path(source.path).stem, disable=engine.rank > 0, mininterval=1)]


@program
def main(arguments: list[str]) -> None:
    config = load(SFTConfig, arguments[0], arguments[1:])
    if Path(config.output).exists():
        print(f"{config.output}: already there")
        return
    become_ranks(config.ranks, config.threads)
    torch.set_num_threads(config.threads)
    engine = Engine(config.model, config.engine)
    metrics = Metrics(Path(config.output).parent / "sft_metrics.jsonl") if engine.rank == 0 else None
    bar = tqdm(total=sum(source.steps for source in config.sources), desc="fine-tuning", disable=engine.rank > 0, unit="step", mininterval=1)
    for source in config.sources:
        rows = read(source, engine, config)
        stream = batches(rows, config.batch_tokens, engine.world_size, random.Random(config.seed))  # the same on every rank
        for _ in range(source.steps):
            started = time.monotonic()
            step_rows = next(stream)
            width = rounded(max(len(rows[i][0]) for i in step_rows))
            picked = [rows[i] for i in step_rows[engine.rank :: engine.world_size]]  # rows of one length: no rank waits for another
            token_ids = pad([ids for ids, _ in picked], 0, torch.long, width).to(engine.device)  # (B, T)
            weights = pad([w for _, w in picked], 0.0, torch.float, width).to(engine.device)
            weights[:, 0] = 0.0  # nothing predicts the first token
            logprobs, _ = token_logprobs(engine.logits(token_ids), token_ids)
            total, = engine.sum([weights.sum().item()])
            engine.backward(weighted_cross_entropy(logprobs, weights) / total, last=True)
            norm, rate = engine.step()
            if engine.steps % 20 == 0:
                said = weights == 1.0
                loss, count = engine.sum([-(logprobs.detach() * said).sum().item(), said.sum().item()])
                if metrics:
                    metrics.log(engine.steps, {"sft/loss": loss / count, "sft/gradient_norm": norm, "sft/learning_rate": rate,
                                               "sft/tokens_per_s": token_ids.numel() * engine.world_size / (time.monotonic() - started)})
                    bar.set_postfix(loss=f"{loss / count:.3f}")
            bar.update()
    weights = engine.weights()
    if engine.rank == 0:
        engine.export(weights, Path(config.output))
    engine.close()


if __name__ == "__main__":
    main(sys.argv[1:])
