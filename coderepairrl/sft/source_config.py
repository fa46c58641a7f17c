"""Where the conversations of a warm start come from: `sources` of its configuration, and the files that each names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, PositiveInt, Tag

from coderepairrl.config import Config, contents
from coderepairrl.errors import ConfigError


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


def files(path: str, patterns: Sequence[str]) -> list[Path]:
    """The file, or those of the folder, in order of their names."""
    place = Path(path)
    found = [place] if place.is_file() else sorted(file for pattern in patterns for file in place.glob(pattern))
    if not found:
        if place.is_dir():
            raise ConfigError(f"{path}: no {' or '.join(patterns)} in this folder: correct the path")
        raise ConfigError(
            f"{path}: no such file: make it first (the demonstrations: scripts/make_policy.py), or correct the path"
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
