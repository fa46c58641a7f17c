"""Proof, at start, that the trainer computes what the model computes: packed rows against the model's own forward pass.

The same random tokens go through both: through the plain model of transformers, attention `eager`, one sequence at a
time, before anything is done to it; and through the engine, as in training: packed, prefixes shared, fused kernels,
adapters, partitioned weights, rows that ranks share. The model's own pass is taken in float32, which is exact, and in
the dtype of training: what it loses there itself, the engine may lose, too.
Legend: N tokens that are compared, T of a row, V of the vocabulary.
"""

import math
import random
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from coderepairrl.errors import ConfigError
from coderepairrl.training import attention, batch
from coderepairrl.training.batch import MicroBatch
from coderepairrl.training.model import layers_of
from coderepairrl.types import Sample

LENGTHS = (70, 55, 41)  # tokens; the first two share SHARED
SHARED = 24
WIDEST = 1024  # sliding window that is filled, tokens: attention by `eager` takes the square
RUN = 16  # neighbouring tokens whose differences are averaged
BOUND = 1e-3  # nats, of the largest of those means, in float32; 2e-6 to 4e-5 are usual
LOSS = 3.0  # times what the model's own forward pass loses in a shorter dtype come on top
SUSPECTS = re.compile("alibi|cap|chunk|clamp|expert|mask|mult|router|scal|sink|window", re.IGNORECASE)  # in config.json


Before = list[tuple[torch.Tensor, torch.Tensor]]  # (tensor, its data before it was lent)


def probe(config: PretrainedConfig) -> list[Sample]:
    """Every token but the first is compared. The last sequence fills a sliding window, where that can be filled."""
    rng = random.Random(0)
    windows = [value for name, value in config.to_dict().items() if name.endswith(("window", "window_size"))]
    filled = max((window for window in windows if isinstance(window, int) and window < WIDEST), default=0)
    draw = lambda count: tuple(rng.randrange(config.vocab_size) for _ in range(count))
    shared = draw(SHARED)
    rows = [shared + draw(LENGTHS[0] - SHARED), shared + draw(LENGTHS[1] - SHARED), draw(filled + LENGTHS[2])]
    return [_sample(number, ids[: getattr(config, "max_position_embeddings", None)]) for number, ids in enumerate(rows)]


def _sample(number: int, ids: tuple[int, ...]) -> Sample:
    nothing, none = (0.0,) * len(ids), (0,) * len(ids)
    compared = (0,) + (1,) * (len(ids) - 1)
    group = "shared" if number < 2 else "alone"
    return Sample(group, str(number), 0, ids, tuple(range(len(ids))), compared, nothing, nothing, none)


@torch.no_grad()
def own(
    model: PreTrainedModel, rows: list[Sample], device: torch.device, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """(2, N) float32: logprob and entropy at temperature 1, by the model's own forward pass, on `device` in `dtype`."""
    parts = []
    with eager(model), lent(model, device, dtype):
        for row in rows:
            ids = torch.tensor([row.token_ids], device=device)
            logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)  # (T - 1, V)
            entropy = torch.special.entr(logprobs.exp()).sum(-1)
            parts.append(torch.stack([logprobs.gather(1, ids[0, 1:, None])[:, 0], entropy]))
    return torch.cat(parts, 1)


def expectation(model: PreTrainedModel, rows: list[Sample], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(3, N): `own` in float32, and in each column the difference that is allowed."""
    exact = own(model, rows, device)
    loss = 0.0 if dtype == torch.float32 else largest(own(model, rows, device, dtype) - exact)
    return torch.cat([exact, torch.full_like(exact[:1], BOUND + LOSS * loss)])


def packed(rows: list[Sample], expected: torch.Tensor, hidden_size: int) -> MicroBatch:
    """All in one row, whose `behaviour_logprobs` and `advantages` are what is expected: packing reorders the tokens."""
    columns = expected.split([len(row.token_ids) - 1 for row in rows], 1)
    filled = [
        replace(row, behaviour_logprobs=(0.0, *values[0].tolist()), advantages=(0.0, *values[1].tolist()))
        for row, values in zip(rows, columns, strict=True)
    ]
    tokens = sum(len(row.token_ids) for row in rows)
    (micro,) = batch.micro_batches(filled, [1.0] * len(filled), tokens, 0, 1, hidden_size=hidden_size)
    return micro


def difference(micro: MicroBatch, logprobs: torch.Tensor, entropy: torch.Tensor) -> float:
    return largest(torch.stack([logprobs - micro.behaviour_logprobs, entropy - micro.advantages]))


def largest(apart: torch.Tensor) -> float:
    """Of the means of |apart| (2, N) over RUN neighbouring tokens; infinite where anything is not a number."""
    return apart.abs().unfold(1, RUN, RUN).mean(-1).nan_to_num(nan=math.inf).max().item()


def refusal(config: PretrainedConfig, apart: float, allowed: float, again: float) -> ConfigError:
    """`again`: the difference of the same row when it was computed a second time."""
    suspects = [
        f"{name}={value}"
        for name, value in config.to_dict().items()
        if SUSPECTS.search(name) and value and not isinstance(value, dict | list)
    ]
    cause = "what config.json has that may be why: " + (", ".join(suspects) or "nothing known")
    if abs(again - apart) > 0.05 * apart:
        cause = "it gives other numbers each time (dropout, noise)"
    return ConfigError(
        f"{config.model_type}: packed rows are {apart:.2g} nats from the model's own forward pass in "
        f"transformers, more than {allowed:.2g}; {cause}: use another model"
    )


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    model.eval()
    model.set_attn_implementation("eager")
    yield
    model.set_attn_implementation(attention.NAME)


@contextmanager
def lent(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Computes elsewhere or in another dtype; the weights go there layer by layer: a model may exceed a GPU."""
    if (model.device, model.dtype) == (device, dtype):
        yield
        return
    layers, away, lend = layers_of(model), {}, partial(_lend, model.dtype, device, dtype)
    inside = set(layers.modules())
    with ExitStack() as stack:
        for layer in layers:
            take = lambda layer, _: away.update({layer: lend(layer.modules())})
            stack.callback(layer.register_forward_pre_hook(take).remove)
            stack.callback(layer.register_forward_hook(lambda layer, *_: _return(away.pop(layer))).remove)
        stack.callback(_return, lend(module for module in model.modules() if module not in inside))
        yield


def _lend(usual: torch.dtype, device: torch.device, dtype: torch.dtype, modules: Iterable[nn.Module]) -> Before:
    """Each tensor once: a head may be tied to the embedding. Parameters of another dtype than usual keep theirs."""
    both = ((module.parameters(False), module.buffers(False)) for module in modules)
    tensors = {id(tensor): tensor for tensor in chain.from_iterable(chain.from_iterable(both))}
    before = [(tensor, tensor.data) for tensor in tensors.values()]
    for tensor, data in before:
        tensor.data = data.to(device, dtype if isinstance(tensor, nn.Parameter) and data.dtype == usual else data.dtype)
    return before


def _return(before: Before) -> None:
    for tensor, data in before:
        tensor.data = data
