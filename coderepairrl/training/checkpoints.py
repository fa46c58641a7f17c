"""Which checkpoints a run keeps: the newest, which it goes on from, and the best by its held-out tasks.

checkpoints/step_00010/    everything that a later attempt needs; policy/ in it is a Hugging Face folder
checkpoints/best.json      {"step", "pass_rate", "path": of its policy}: the highest pass rate that an evaluation
                           gave; of equal ones the first
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from coderepairrl.files import read_json, write_json


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:05d}"


def note_best(run: Path, step: int, pass_rate: float) -> None:
    """If it is, and has a checkpoint: the weights that training began with have none."""
    best = read_json(run / "checkpoints" / "best.json")
    if folder_of(run, step).exists() and (best is None or pass_rate > best["pass_rate"]):
        write_json(
            run / "checkpoints" / "best.json",
            {"step": step, "pass_rate": pass_rate, "path": str(folder_of(run, step) / "policy")},
        )


def prune(run: Path, keep: int, awaited: Callable[[int], bool]) -> None:
    """Removes all but the newest `keep`, the best, those of awaited steps, and what current.json names, which vLLM may
    be started from."""
    folders = set((run / "checkpoints").glob("step_*"))
    whole = sorted(folder for folder in folders if folder.suffix != ".tmp")
    stay = {*whole[-keep:], *(folder for folder in whole if awaited(int(folder.name.removeprefix("step_"))))}
    if best := read_json(run / "checkpoints" / "best.json"):
        stay.add(folder_of(run, best["step"]))
    for folder in folders - stay:
        named = Path(read_json(run / "policy" / "current.json")["path"]).resolve()
        if not named.is_relative_to(folder.resolve()):
            shutil.rmtree(folder)
