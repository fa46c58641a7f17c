"""A source's files -> its conversations, in order, tokenised by several processes; bad input is named by file and
line."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coderepairrl.errors import ConfigError, GatewayError
from coderepairrl.gateway.families import make_renderer
from coderepairrl.gateway.messages import without_surrogates
from coderepairrl.models.tokenizer import load_tokenizer
from coderepairrl.rollout import trajectory_files
from coderepairrl.sft.conversations import Conversation, LeftOut, from_chat, from_trajectory
from coderepairrl.sft.source_config import ChatSource, TrajectoriesSource, files_of

CHUNK = 64  # conversations that a process tokenises at a time


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
