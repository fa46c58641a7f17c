"""Ulysses sequence parallelism, section 3 of arXiv:2309.14509: neighbouring ranks share one row that is too long for
one GPU's memory.

Each rank computes a P-th of the row's tokens. Attention alone needs the others': an all-to-all turns (T / P tokens, H
heads) into (T, H / P) before it, and back after it. Every rank then gets the logprobs of all trained tokens of the row,
so that losses need not know of the split, and sends back the gradient of its own: the sum over ranks counts each token
once.

Legend: T tokens of the row, P ranks that share it, H heads of the queries, G of keys and of values, D their size, N
trained tokens.
"""

from dataclasses import replace
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PretrainedConfig

from coderepairrl.errors import ConfigError
from coderepairrl.training.batch import MicroBatch


def check(ranks: int, world_size: int, config: PretrainedConfig) -> None:
    """Raises ConfigError where `ranks` can't share a row."""
    heads = config.num_attention_heads
    for name, count in (
        ("ranks", world_size),
        ("attention heads", heads),
        ("key and value heads", getattr(config, "num_key_value_heads", None) or heads),
    ):
        if count % ranks:
            raise ConfigError(
                f"engine.sequence_ranks={ranks} does not divide the {count} {name}: set it to a number that does, "
                "or to 1 with checkpointed_share or offload_activations for long rows"
            )


class RowGroup:
    """The ranks that share a row; this one is number `rank` of `size`. Every method is collective among them but
    `part`."""

    def __init__(self, size: int, timeout: timedelta):
        """Collective over all ranks. `timeout`: of one exchange."""
        self.size, self.rank = size, dist.get_rank() % size
        self._group, _ = dist.new_subgroups(size, timeout=timeout)

    def part(self, micro: MicroBatch) -> tuple[MicroBatch, torch.Tensor]:
        """(what this rank computes, which of the N trained tokens it is). The row is padded at its end; attention never
        sees that."""
        tokens = -(-micro.token_ids.shape[1] // self.size)
        start = self.rank * tokens
        cut = lambda row: F.pad(row, (0, tokens * self.size - row.shape[1]))[:, start : start + tokens]
        own = (micro.sources // tokens == self.rank).nonzero()[:, 0]
        return replace(
            micro,
            token_ids=cut(micro.token_ids),
            position_ids=cut(micro.position_ids),
            sources=micro.sources[own] - start,
            targets=micro.targets[own],
        ), own

    def whole(self, values: torch.Tensor, own: torch.Tensor, count: int) -> torch.Tensor:
        """(K, number of `own`) -> (K, count): the parts of all ranks."""
        return _Gather.apply(values.new_zeros(len(values), count).index_copy(1, own, values), self._group)

    def split_heads(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tokens: int
    ) -> tuple[torch.Tensor, ...]:
        """(1, H, T / P, D), and twice (1, G, T / P, D) -> the same with H / P, G / P, and the row's `tokens` without
        padding."""
        heads = [tensor.shape[1] // self.size for tensor in (query, key, value)]
        by_rank = lambda tensor: tensor[0].unflatten(0, (self.size, -1))  # (P, H / P, T / P, D)
        # (P, T / P, heads, D)
        mixed = _AllToAll.apply(
            torch.cat([by_rank(query), by_rank(key), by_rank(value)], 1).transpose(1, 2), self._group
        )
        return tuple(tensor[None] for tensor in mixed.flatten(0, 1)[:tokens].transpose(0, 1).split(heads))

    def join_heads(self, output: torch.Tensor) -> torch.Tensor:
        """(1, tokens, H / P, D) -> (1, T / P, H, D)."""
        row = F.pad(output[0], (0, 0, 0, 0, 0, -len(output[0]) % self.size))
        return _AllToAll.apply(row.unflatten(0, (self.size, -1)), self._group).transpose(0, 1).flatten(1, 2)[None]


class _AllToAll(torch.autograd.Function):
    """Part p of the first dimension goes to rank p."""

    @staticmethod
    def forward(ctx, parts, group):
        ctx.group = group
        return _exchanged(parts, group)

    @staticmethod
    def backward(ctx, grad):
        return _exchanged(grad, ctx.group), None


def _exchanged(parts: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received


class _Gather(torch.autograd.Function):
    """Sums what is zero on all ranks but one. Its backward is no sum: every rank has the same gradient already."""

    @staticmethod
    def forward(ctx, values, group):
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad, None
