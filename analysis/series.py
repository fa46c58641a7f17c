"""Metrics of runs, read: a run's rows and evaluations, and the curve that runs of several seeds are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from figure import COLOURS, INK
from seeds import curves_of

from coderepairrl.files import read_json
from coderepairrl.run.metrics import read_evaluations, read_metrics


@dataclass(frozen=True)
class Run:
    folder: Path
    rows: list[dict]
    summary: dict | None
    held_out: dict[int, dict]  # step of the weights -> row of metrics.jsonl, of every evaluation

    @property
    def evaluations(self) -> dict[int, dict]:
        """Those beside training; that of the weights after the last step is the summary's."""
        last = self.rows[-1]["step"] if self.rows else 0
        return {step: row for step, row in self.held_out.items() if 0 < step <= last}


@dataclass(frozen=True)
class Curve:
    name: str
    colour: str
    runs: list[Run]
    steps: list[int]  # that all runs have

    def rows(self, run: Run) -> list[dict]:
        wanted = set(self.steps)
        return [row for row in run.rows if row["step"] in wanted]


def read(folder: Path) -> Run:
    path = folder / "metrics.jsonl"
    rows = [row | submitted(row) for row in read_metrics(path)]
    return Run(folder, rows, read_json(folder / "summary.json"), {row["step"]: row for row in read_evaluations(path)})


def load(folders: Sequence[Path]) -> list[Curve]:
    """Raises ValueError with cause and remedy in one line."""
    groups = curves_of(folders)
    if len(groups) > len(COLOURS):
        raise ValueError(f"{len(groups)} curves: at most {len(COLOURS)} can be told apart in one picture: give fewer")
    curves = []
    for (name, members), colour in zip(groups.items(), COLOURS):
        runs = [read(folder) for folder in members]
        steps = sorted(set.intersection(*({row["step"] for row in run.rows} for run in runs)))
        if not steps:
            raise ValueError(
                f"{name}: no step that {' and '.join(map(str, members))} both have: wait for the first one, or give "
                "other runs"
            )
        curves.append(Curve(name, colour if len(folders) > 1 else INK, runs, steps))
    return curves


def submitted(row: dict) -> dict[str, float]:
    """Share of the step's episodes."""
    episodes = sum(value for name, value in row.items() if name.startswith("outcome/"))
    return {"submitted": row.get("outcome/submitted", 0) / episodes} if episodes else {}
