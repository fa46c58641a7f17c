"""metrics.jsonl always; W&B when asked, offline unless the user says otherwise. docs/metrics.md says what each name
means."""

import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt

from coderepairrl.config import Config
from coderepairrl.files import drop_torn_line, read_json, write_json
from coderepairrl.training import finite
from coderepairrl.types import Trajectory

MAX_CELL = 20_000  # characters of a diff or a conversation in a table: head and tail are kept
FORMER_NAMES = {"gradient_norm": "grad_norm", "clipped_share": "clip_ratio/region_mean"}  # in older runs -> now


class WandbConfig(Config):
    """Weights & Biases, beside metrics.jsonl."""

    project: str  # where its runs are listed
    name: str | None = None  # null: the run folder's
    mode: Literal["offline", "online"] = "offline"  # offline: into the run folder, for scripts/sync_wandb.sh
    table_every: NonNegativeInt = 10  # steps between two tables of trajectories; 0: none


class Metrics:
    """One JSON object a line: {"step": ..., "time": seconds since the epoch, name: number, ...}. One process writes.

    A row of an evaluation has names that begin with eval/, and comes after those of later steps. What could not be
    measured
    is not in the row, here, in W&B and in every other file; nothing is ever NaN, which is no JSON.
    """

    def __init__(self, path: Path, wandb: WandbConfig | None = None, resolved_config: dict | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(path)
        self._file = path.open("a", buffering=1)
        self._config, self._wandb = wandb, None
        if wandb:
            import wandb as library  # only when asked: it takes a second to import

            self._library = library
            self._wandb = library.init(
                project=wandb.project,
                name=wandb.name or path.parent.name,
                mode=wandb.mode,
                dir=path.parent,
                config=resolved_config,
                id=_wandb_id(path.parent),
                resume="allow",
            )
            # our own axis: W&B refuses a step of its own below the last one, which is what a resumed run logs
            self._wandb.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        finite.demand(f"step {step}", values)
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | values, allow_nan=False) + "\n")
        if self._wandb:
            self._wandb.log({"step": step} | values)

    def log_trajectories(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """W&B's table `trajectories`, every table_every steps: a row an episode. The whole truth is in rollouts/."""
        if self._wandb and trajectories and self._config.table_every and step % self._config.table_every == 0:
            columns, rows = table(step, trajectories)
            self._wandb.log({"step": step, "trajectories": self._library.Table(columns=columns, data=rows)})

    def close(self) -> None:
        self._file.close()
        if self._wandb:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict]:
    """The training steps of a metrics.jsonl under today's names, one row each, in order: of a step that was done again
    after a crash, the last."""
    return _last_of_each_step(row for row in _rows(path) if not _is_evaluation(row))


def read_evaluations(path: Path) -> list[dict]:
    """Its evaluations, in order: `step` is that of the weights. Empty while there is no file."""
    return _last_of_each_step(row for row in _rows(path) if _is_evaluation(row)) if path.exists() else []


def _is_evaluation(row: dict) -> bool:
    """A row of its own, since it is written when later steps have been."""
    return any(name.startswith("eval/") for name in row)


def _rows(path: Path) -> Iterator[dict]:
    """Older runs also wrote NaN and infinite numbers: they are left out, as what could not be measured is today."""
    for line in path.read_text().splitlines():
        yield {
            _present_name(name): value
            for name, value in json.loads(line).items()
            if not isinstance(value, float) or math.isfinite(value)
        }


def _last_of_each_step(rows: Iterable[dict]) -> list[dict]:
    found = {row["step"]: row for row in rows}
    return [found[step] for step in sorted(found)]


def table(step: int, trajectories: Sequence[Trajectory]) -> tuple[list[str], list[list]]:
    """(columns, rows): a row an episode."""
    parts = list(dict.fromkeys(part for t in trajectories for part in t.rewards))
    columns = [
        "step",
        "trajectory",
        "task",
        *(f"rewards/{part}" for part in parts),
        "reward",
        "outcome",
        "calls",
        "tokens",
        "diff",
        "conversation",
    ]
    rows = [
        [
            step,
            t.trajectory_id,
            t.task_id,
            *(t.rewards.get(part) for part in parts),
            t.reward,
            str(t.outcome),
            len(t.calls),
            t.sampled_tokens,
            _cell(t.diff),
            _cell(conversation(t.events)),
        ]
        for t in trajectories
    ]
    return columns, rows


def conversation(events: Sequence[dict]) -> str:
    """What was said, from the gateway's events: each call's new messages and the model's answer."""
    blocks = []
    for event in events:
        if event["kind"] != "call":
            continue
        if event["parent"] is None and event["index"]:
            blocks.append(f"=== a new conversation ({event['why_root']})")
        blocks += [_said(message) for message in (*event["new_messages"], event["message"])]
    return "\n\n".join(blocks)


def _said(message: dict) -> str:
    content = message.get("content")
    if isinstance(content, list):  # the API's parts; those that are no text are named
        content = "".join(part.get("text", f"[{part.get('type')}]") for part in content)
    calls = [
        f"-> {call['function']['name']} {call['function']['arguments']}" for call in message.get("tool_calls") or ()
    ]
    thought = [f"(thinks) {message['reasoning_content']}"] if message.get("reasoning_content") else []
    return "\n".join([f"[{message['role']}]", *thought, *([content] if content else []), *calls])


def _cell(text: str) -> str:
    text = text.encode(errors="replace").decode()  # half a surrogate pair is no JSON
    half = MAX_CELL // 2
    return (
        text
        if len(text) <= MAX_CELL
        else f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    )


def _present_name(name: str) -> str:
    if name.startswith("reward/"):
        return f"rewards/{name.removeprefix('reward/')}/mean"
    return FORMER_NAMES.get(name, name)


def _wandb_id(run: Path) -> str:
    """The same for all attempts of a run folder; another folder of the same name has another."""
    known = read_json(run / "wandb_id.json")
    if known is None:
        known = secrets.token_hex(4)
        write_json(run / "wandb_id.json", known)
    return known
