"""A rank's micro-batches, put together by a process beside it while the GPU computes: a step's rows take a
good part of a small model's step to pack."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from torch.utils.data import DataLoader, IterableDataset

from coderepairrl.sft import dataset
from coderepairrl.sft.dataset import Rows
from coderepairrl.sft.sft_config import SFTConfig
from coderepairrl.training import batch
from coderepairrl.training.batch import MicroBatch

STEPS_AHEAD = 3


class _Steps(IterableDataset):
    """A step's micro-batches of this rank; the sources one after the other, in an order that is the same on each."""

    def __init__(self, config: SFTConfig, sources: Sequence[Rows], rank: int, ranks: int, hidden_size: int):
        self.config, self.sources, self.rank, self.ranks = config, sources, rank, ranks
        self.hidden_size = hidden_size

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        config = self.config
        for source, rows in zip(config.sources, self.sources, strict=True):
            order = dataset.shuffled(len(rows), random.Random(config.seed), endless=source.steps is not None)
            for samples in islice(dataset.steps(rows, config.batch_tokens, order), source.steps):
                weight = sum(sum(sample.advantages) for sample in samples)
                yield batch.micro_batches(
                    samples,
                    [1 / weight] * len(samples),
                    config.micro_batch_tokens,
                    self.rank,
                    self.ranks,
                    hidden_size=self.hidden_size,
                )


def steps(
    config: SFTConfig, sources: Sequence[Rows], rank: int, ranks: int, hidden_size: int
) -> Iterator[list[MicroBatch]]:
    """The steps of all sources, in order. `rank` of `ranks`: those that rows are dealt to."""
    return iter(
        DataLoader(
            _Steps(config, sources, rank, ranks, hidden_size),
            batch_size=None,
            num_workers=1,
            prefetch_factor=STEPS_AHEAD,
            multiprocessing_context="fork",  # rows are a map of a file: nothing is copied
        )
    )
