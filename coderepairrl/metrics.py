"""metrics.jsonl always; W&B when asked, offline unless the user says otherwise."""
import json
import time
from pathlib import Path
from typing import Literal

from coderepairrl.config import Config


class WandbConfig(Config):
    project: str
    name: str | None = None
    mode: Literal["offline", "online"] = "offline"


class Metrics:
    """One JSON object a line: {"step": ..., "time": seconds since the epoch, name: number, ...}. One process writes."""

    def __init__(self, path: Path, wandb: WandbConfig | None = None, resolved_config: dict | None = None):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)
        self._wandb = None
        if wandb:
            import wandb as library  # only when asked: it takes a second to import
            self._wandb = library.init(project=wandb.project, name=wandb.name, mode=wandb.mode, dir=path.parent, config=resolved_config, id=path.parent.name, resume="allow")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3)} | values) + "\n")
        if self._wandb:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        self._file.close()
        if self._wandb:
            self._wandb.finish()
