"""The rows of a warm start on disk: `prepare` writes them, so that bad input is found before any rank starts; `load`
reads them from there, and `steps` makes batches of them."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from coderepairrl.sft.conversations import Conversation, LeftOut
from coderepairrl.sft.reading import READERS
from coderepairrl.sft.source_config import SourceConfig
from coderepairrl.training import packing
from coderepairrl.types import Sample

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("tokens", pa.int64()),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("weights", pa.list_(pa.list_(pa.float32()))),
    ]
)


def prepare(
    sources: Sequence[SourceConfig], folder: Path, model: str, context_weight: float, longest: int, processes: int
) -> list[dict[str, int]]:
    """Writes FOLDER/0.arrow, 1.arrow ..., one a source. Returns how many conversations each has left out, and why.
    Raises ConfigError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out = []
    for number, source in enumerate(sources):
        left_out: Counter[str] = Counter()
        read = READERS[type(source)](source, model, context_weight, processes)
        found = iter(tqdm(read, desc=Path(source.path).stem, unit="row", mininterval=1))
        with pa.OSFile(str(folder / f"{number}.arrow"), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            while part := list(islice(found, 1000)):
                left_out.update(item.reason for item in part if isinstance(item, LeftOut))
                whole = [item for item in part if isinstance(item, Conversation)]
                kept = [item for item in whole if max(len(row.token_ids) for row in item.rows) <= longest]
                left_out["longer than micro_batch_tokens"] += len(whole) - len(kept)
                writer.write(pa.RecordBatch.from_pylist([_columns(item) for item in kept], SCHEMA))
        out.append({reason: count for reason, count in left_out.items() if count})
    return out


def _columns(item: Conversation) -> dict:
    ids = [row.token_ids for row in item.rows]
    shared = sum(packing.shared_length(np.asarray(a), np.asarray(b)) for a, b in pairwise(sorted(map(tuple, ids))))
    return {
        "key": item.key,
        "tokens": sum(map(len, ids)) - shared,
        "token_ids": ids,
        "weights": [row.weights for row in item.rows],
    }


class Rows:
    """Conversations of a prepared file, in memory only while they are used."""

    def __init__(self, table: pa.Table, indices: Sequence[int] | None = None):
        self.table = table
        self.indices = range(len(table)) if indices is None else indices
        keys, tokens = table["key"].to_pylist(), table["tokens"].to_pylist()
        self.keys, self.tokens = [keys[i] for i in self.indices], [tokens[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> list[Sample]:
        """A sample for each row of the conversation; its weights are the advantages."""
        key, ids, weights = (self.table[name][self.indices[number]].as_py() for name in ("key", "token_ids", "weights"))
        return [
            _sample(key, branch, tokens, weight)
            for branch, (tokens, weight) in enumerate(zip(ids, weights, strict=True))
        ]

    def only(self, keep: Callable[[str], bool]) -> "Rows":
        return Rows(self.table, [i for i, key in zip(self.indices, self.keys, strict=True) if keep(key)])


def _sample(key: str, branch: int, token_ids: list[int], weights: list[float]) -> Sample:
    length = len(token_ids)
    return Sample(
        group_id=key,
        trajectory_id=key,
        branch_id=branch,
        token_ids=tuple(token_ids),
        position_ids=tuple(range(length)),
        loss_mask=tuple(int(weight > 0) for weight in weights),
        behaviour_logprobs=(0.0,) * length,
        advantages=tuple(weights),
        policy_versions=(-1,) * length,
    )


def load(folder: Path, trained: int, share: float) -> tuple[list[Rows], list[Rows]]:
    """(a source each to train on, a source each to evaluate on). The first `trained` files are for training; of them
    `share` is held out, chosen by the key's digits, and so is every conversation that the other files hold."""
    found = [
        Rows(pa.ipc.open_file(pa.memory_map(str(folder / f"{i}.arrow"))).read_all())
        for i in range(len(list(folder.glob("*.arrow"))))
    ]
    own, others = found[:trained], found[trained:]
    known = {key for rows in others for key in rows.keys}

    def held(key: str) -> bool:
        return key in known or int(key[:8], 16) < share * 16**8

    return [rows.only(lambda key: not held(key)) for rows in own], others or [rows.only(held) for rows in own]


def shuffled(count: int, rng: random.Random, endless: bool) -> Iterator[int]:
    yield from rng.sample(range(count), count)
    while endless:
        yield from rng.sample(range(count), count)


def steps(rows: Rows, tokens: int, order: Iterable[int]) -> Iterator[list[Sample]]:
    """Conversations in this order, as many for each step as have at most `tokens` tokens (or one that has more)."""
    samples, size = [], 0
    for i in order:
        if samples and size + rows.tokens[i] > tokens:
            yield samples
            samples, size = [], 0
        samples += rows[i]
        size += rows.tokens[i]
    if samples:
        yield samples
