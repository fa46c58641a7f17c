"""Conversations and trajectories -> rows of supervised fine-tuning: token ids, and the weight of each token in the
loss.

A conversation is tokenised as the gateway would have recorded it, had the policy said what the assistant says: prompts
are rendered,
the assistant's turns are what a policy would have to sample, and each next prompt extends what is there. What comes
after the last
turn is left out. Where a template rewrites earlier turns, the next turn starts another row, which shares its prefix
with the one before.
Trajectories keep the ids that were sampled.

`prepare` writes the rows to disk, so that bad input is found before any rank starts; `Rows` reads them from there.
"""

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Discriminator, PositiveInt, Tag
from tqdm import tqdm

from coderepairrl.config import Config, contents
from coderepairrl.errors import ConfigError, GatewayError
from coderepairrl.gateway.families import make_renderer
from coderepairrl.gateway.messages import normalise, without_surrogates
from coderepairrl.gateway.rendering import Renderer
from coderepairrl.gateway.shown import left_out, shape_of
from coderepairrl.models.tokenizer import load_tokenizer
from coderepairrl.rollout import trajectory_files
from coderepairrl.training import batch, packing
from coderepairrl.types import Outcome, Sample, Trajectory

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("tokens", pa.int64()),
        ("token_ids", pa.list_(pa.list_(pa.int32()))),
        ("weights", pa.list_(pa.list_(pa.float32()))),
    ]
)
CHUNK = 64  # conversations that a process tokenises at a time


class ChatSource(Config):
    """Rows {"messages": [...], "tools": [...]} in OpenAI's form, as JSONL or Parquet (there messages and tools may also
    be JSON text).

    An assistant's message with "train": false is shown and never learnt. In Parquet's structs null stands for what
    isn't there.
    """

    kind: Literal["chat"] = "chat"
    path: str  # a file, or a folder of them
    steps: PositiveInt | None = None  # optimizer steps; null: once through


class TrajectoriesSource(Config):
    """Episodes that the rollout process recorded, token-exact; what was sampled is learnt. Those that infrastructure
    ended are left out."""

    kind: Literal["trajectories"]
    path: str  # step_*.parquet of this folder and of those below it (a run's folder: its rollouts), or a file
    steps: PositiveInt | None = None  # optimizer steps; null: once through
    split: Literal["train", "heldout"] = "train"  # of the tasks
    min_reward: float | None = None  # those with less are left out; null: none is
    resolved: bool = False  # true: only those that passed the hidden tests
    submitted: bool = False  # true: only those that the agent ended by submitting


SourceConfig = Annotated[
    Annotated[ChatSource, Tag("chat")] | Annotated[TrajectoriesSource, Tag("trajectories")],
    Discriminator(lambda value: value.get("kind", "chat") if isinstance(value, dict) else getattr(value, "kind", None)),
]


@dataclass(frozen=True)
class Row:
    token_ids: Sequence[int]
    weights: Sequence[float]  # of each token's loss


@dataclass(frozen=True)
class Conversation:
    key: str  # equal for what should not be divided between training and evaluation
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class LeftOut:
    reason: str


def from_chat(raw: dict, renderer: Renderer, context_weight: float) -> Conversation | LeftOut:
    """Raises GatewayError for messages that are none, or that the template refuses. `key` is of what comes before the
    assistant's first turn."""
    if not isinstance(raw, dict) or not isinstance(raw.get("messages"), list):
        raise GatewayError("there is no list of messages")
    messages, tools = [normalise(message) for message in raw["messages"]], raw.get("tools") or None
    if tools and not (
        isinstance(tools, list)
        and all(isinstance(tool, dict) and isinstance(tool.get("function"), dict) for tool in tools)
    ):
        raise GatewayError("each of tools must be an object with a function")
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    trained = {i: float(raw["messages"][i].get("train", True)) for i in turns}
    if not any(trained.values()):
        return LeftOut("no assistant's turn to learn")
    rows: list[tuple[list[int], list[float]]] = []
    prompt, said, last = None, (), 0
    for i in turns:
        prompt = (
            renderer.extend(prompt, said, "stop", messages[: last + 1], messages[last + 1 : i], tools) if rows else None
        )
        if prompt is None:
            prompt = renderer.render(messages[:i], tools)
            rows.append(([], []))
        ids, weights = rows[-1]
        said, last = renderer.turn(messages[i], tools), i
        weights += [context_weight if len(rows) == 1 else 0.0] * (len(prompt) - len(ids)) + [trained[i]] * len(said)
        ids[:] = prompt + said
    _refuse_what_is_not_shown(messages, turns, tools, renderer)
    key = hashlib.sha256(json.dumps(messages[: turns[0]], sort_keys=True).encode()).hexdigest()
    return conversation(key, rows)


def _refuse_what_is_not_shown(
    messages: list[dict], turns: Sequence[int], tools: list[dict] | None, renderer: Renderer
) -> None:
    """Raises GatewayError where the template drops a part of a turn, or the answers to it: something else would be
    learnt."""
    for i in turns:
        answered = i != turns[-1] and messages[i + 1]["role"] == "tool"
        lost = left_out(renderer, shape_of(messages[i], answered, bool(tools)))
        if lost:
            raise GatewayError(
                f"the model's chat template leaves out {' and '.join(lost)} of message {i + 1} of "
                f"{len(messages)}, and that would be learnt"
            )


def from_trajectory(
    trajectory: Trajectory, source: TrajectoriesSource, context_weight: float
) -> Conversation | LeftOut:
    """One row a branch, as in reinforcement learning. `key` is the task's."""
    if trajectory.outcome == Outcome.INFRASTRUCTURE_ERROR or trajectory.split != source.split:
        return LeftOut(
            "infrastructure_error" if trajectory.split == source.split else f"a task of split {trajectory.split}"
        )
    if source.min_reward is not None and trajectory.reward < source.min_reward:
        return LeftOut("reward below min_reward")
    if source.resolved and not (trajectory.verdict and trajectory.verdict.resolved):
        return LeftOut("not resolved")
    if source.submitted and trajectory.outcome != Outcome.SUBMITTED:
        return LeftOut("not submitted")
    rows, calls = [], trajectory.calls
    for path, sample in zip(batch.branches(calls), batch.samples(trajectory, [1.0] * len(calls)), strict=True):
        weights = np.full(len(sample.token_ids), 0.0 if rows else context_weight)
        for call in path:
            # another branch may train it
            weights[len(call.prompt_ids) : len(call.prompt_ids) + len(call.completion_ids)] = 0.0
        # negative: not sampled, or not to be learnt
        rows.append((sample.token_ids, np.maximum(weights, np.asarray(sample.policy_versions) >= 0)))
    return conversation(hashlib.sha256(trajectory.task_id.encode()).hexdigest(), rows)


def conversation(key: str, rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Conversation | LeftOut:
    """Of (token ids, weights); rows that teach nothing are dropped."""
    # nothing predicts the first token
    kept = tuple(Row(ids, (0.0, *weights[1:])) for ids, weights in rows if any(weights[1:]))
    return Conversation(key, kept) if kept else LeftOut("nothing to learn")


def files(path: str, patterns: Sequence[str]) -> list[Path]:
    """The file, or those of the folder, in order of their names."""
    place = Path(path)
    found = [place] if place.is_file() else sorted(file for pattern in patterns for file in place.glob(pattern))
    if not found:
        raise ConfigError(
            f"{path}: "
            + (
                f"no {' or '.join(patterns)} in this folder: correct the path"
                if place.is_dir()
                else "no such file: make it first (the demonstrations: scripts/make_policy.py), or correct the path"
            )
        )
    return found


def files_of(source: SourceConfig) -> list[Path]:
    """What is read of a source. Raises ConfigError."""
    return files(source.path, ("*.jsonl", "*.parquet") if source.kind == "chat" else ("**/step_*.parquet",))


def places(sources: Sequence[SourceConfig], evaluation: Sequence[SourceConfig]) -> dict[str, SourceConfig]:
    """By the keys under which inputs.py records their paths."""
    named = {"sources": sources, "evaluation.sources": evaluation}
    return {f"{key}.{i}.path": source for key, found in named.items() for i, source in enumerate(found)}


def content(source: SourceConfig) -> dict[str, str]:
    """{"path", "sha256" of what is read of it}. Raises ConfigError."""
    return {"path": source.path, "sha256": contents.of_files(files_of(source))}


def chat_conversations(
    source: ChatSource, model: str, context_weight: float, processes: int
) -> Iterator[Conversation | LeftOut]:
    with ProcessPoolExecutor(processes, get_context("fork"), _start_worker, (model, context_weight)) as pool:
        found = (line for file in files_of(source) for line in lines(file))
        for part in pool.map(_encode, iter(lambda: list(islice(found, CHUNK)), [])):
            yield from part


def _start_worker(model: str, context_weight: float) -> None:
    global _from_chat
    _from_chat = partial(from_chat, renderer=make_renderer(load_tokenizer(model)), context_weight=context_weight)


def _encode(part: list[tuple[str, Any]]) -> list[Conversation | LeftOut]:
    out = []
    for where, raw in part:
        try:
            if isinstance(raw, str):
                raw = without_surrogates(json.loads(raw)) if "\\ud" in raw.lower() else json.loads(raw)
            out.append(_from_chat(raw))
        except (GatewayError, ValueError) as error:
            raise ConfigError(f"{where}: {error}: correct that conversation, or take it out") from error
    return out


@contextmanager
def readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        kind = "a Parquet file" if file.suffix == ".parquet" else "text in UTF-8"
        raise ConfigError(f"{file}: not {kind} ({error}): correct the path, or write the file again") from error


def lines(file: Path) -> Iterator[tuple[str, Any]]:
    """(where, a line's text or a Parquet row)."""
    with readable(file):
        if file.suffix != ".parquet":
            with file.open(encoding="utf-8") as opened:
                yield from ((f"{file}, line {number}", line) for number, line in enumerate(opened, 1) if line.strip())
            return
        rows = (row for part in pq.ParquetFile(file).iter_batches(CHUNK) for row in part.to_pylist())
        for number, row in enumerate(rows, 1):
            yield (
                f"{file}, row {number}",
                {
                    name: json.loads(value) if isinstance(value, str) else without_null(value)
                    for name, value in row.items()
                },
            )


def without_null(value: Any) -> Any:
    """A struct of Parquet has every key that any row has."""
    if isinstance(value, dict):
        return {key: without_null(item) for key, item in value.items() if item is not None}
    return [without_null(item) for item in value] if isinstance(value, list) else value


def trajectory_conversations(
    source: TrajectoriesSource, model: str, context_weight: float, processes: int
) -> Iterator[Conversation | LeftOut]:
    known = len(load_tokenizer(model))
    for file in files_of(source):
        with readable(file):
            trajectories, _ = trajectory_files.read(file)
        for trajectory in trajectories:
            found = from_trajectory(trajectory, source, context_weight)
            if isinstance(found, Conversation) and max(max(row.token_ids) for row in found.rows) >= known:
                raise ConfigError(
                    f"{file}: {trajectory.trajectory_id} has token ids that the tokenizer of {model} doesn't know: "
                    "it was sampled with another; name that one's model"
                )
            yield found


READERS: dict[type, Callable[..., Iterator[Conversation | LeftOut]]] = {
    ChatSource: chat_conversations,
    TrajectoriesSource: trajectory_conversations,
}


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
        found = iter(
            tqdm(
                READERS[type(source)](source, model, context_weight, processes),
                desc=Path(source.path).stem,
                unit="row",
                mininterval=1,
            )
        )
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
            Sample(
                key,
                key,
                branch,
                tuple(t),
                tuple(range(len(t))),
                tuple(int(x > 0) for x in w),
                (0.0,) * len(t),
                tuple(w),
                (-1,) * len(t),
            )
            for branch, (t, w) in enumerate(zip(ids, weights, strict=True))
        ]

    def only(self, keep: Callable[[str], bool]) -> "Rows":
        return Rows(self.table, [i for i, key in zip(self.indices, self.keys, strict=True) if keep(key)])


def load(folder: Path, trained: int, share: float) -> tuple[list[Rows], list[Rows]]:
    """(a source each to train on, a source each to evaluate on). The first `trained` files are for training; of them
    `share` is held out,
    chosen by the key's digits, and so is every conversation that the other files hold."""
    found = [
        Rows(pa.ipc.open_file(pa.memory_map(str(folder / f"{i}.arrow"))).read_all())
        for i in range(len(list(folder.glob("*.arrow"))))
    ]
    own, others = found[:trained], found[trained:]
    known = {key for rows in others for key in rows.keys}
    held = lambda key: key in known or int(key[:8], 16) < share * 16**8
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
