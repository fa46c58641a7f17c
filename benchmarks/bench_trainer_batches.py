"""Batches with random tokens, a part of bench_trainer.py: rows, and groups with the lengths of agents' trajectories."""

import math
from typing import Literal

import numpy as np
from bench_trainer_shapes import SHAPES
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from coderepairrl.config import Config
from coderepairrl.types import Sample


class AgentConfig(Config):
    """Groups of trajectories: a prompt that the group shares, then sampled tokens and tool outputs by turns."""

    shape: str  # one of coderepairrl/models/shapes.py
    mode: Literal["lora", "full"]  # what is trained
    groups: PositiveInt  # of the batch
    group_size: PositiveInt  # trajectories of each
    prompt_tokens: tuple[PositiveInt, PositiveInt]  # least and most, uniform
    median_completion: PositiveInt  # tokens, log-normal, tool outputs included
    spread: NonNegativeFloat  # sigma of its logarithm
    longest: PositiveInt  # tokens, prompt and completion
    row_tokens: PositiveInt  # of one packed row
    trl: bool  # measure TRL, too
    seed: NonNegativeInt = 0  # of the lengths


def row(index: int, ids: np.ndarray, mask: np.ndarray, group: str, vocabulary: int, advantage: float) -> Sample:
    logprobs = -math.log(vocabulary) * mask  # what a random model gives, nearly
    return Sample(
        group,
        f"t{index}",
        0,
        tuple(ids.tolist()),
        tuple(range(len(ids))),
        tuple(mask.tolist()),
        tuple(logprobs.tolist()),
        tuple((advantage * mask).tolist()),
        tuple((mask - 1).tolist()),
    )


def agent_rows(config: AgentConfig) -> list[Sample]:
    rng, vocabulary = np.random.default_rng(config.seed), SHAPES[config.shape]["vocab_size"]
    rows = []
    for group in range(config.groups):
        prompt = rng.integers(1, vocabulary, rng.integers(*config.prompt_tokens))
        for member in range(config.group_size):
            wanted = min(
                int(rng.lognormal(math.log(config.median_completion), config.spread)), config.longest - len(prompt)
            )
            mask = [np.zeros(len(prompt), dtype=np.int64)]
            while wanted > 0:
                sampled, answered = (
                    int(rng.lognormal(math.log(config.median_completion / of), 0.8)) + 1 for of in (40, 15)
                )
                mask += [
                    np.ones(min(sampled, wanted), dtype=np.int64),
                    np.zeros(max(0, min(answered, wanted - sampled)), dtype=np.int64),
                ]
                wanted -= sampled + answered
            mask = np.concatenate(mask)
            ids = np.concatenate([prompt, rng.integers(1, vocabulary, len(mask) - len(prompt))])
            rows.append(row(len(rows), ids, mask, f"g{group}", vocabulary, (-1) ** member))
    return rows
